"""NNI's experiment files: the ones of ours checked, and those of the cell phase by NNI's tuners written."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from nni.experiment.config import ExperimentConfig
from nni.experiment.config.utils import unset_base_path

from nni_bertnas.config import Study
from nni_bertnas.errors import ConfigError
from nni_bertnas.search.parameters import nni_search_space
from nni_bertnas.stages import STAGES
from nni_bertnas.stages.run import Run
from nni_bertnas.stages.stage import load
from nni_bertnas.study_files import load_study, read_yaml
from search_space.listing import Space

# File name after `cell_` -> NNI's tuner with its settings, and what its goal is called beside it.
_TUNERS: Mapping[str, tuple[str, dict[str, Any], str]] = {
    "random": ("Random", {}, "what the web UI calls best"),
    "tpe": ("TPE", {}, "the block score"),
    "evolution": ("Evolution", {"population_size": 8}, "the block score"),
}
_HEAD = """\
# nnictl create --config experiment_configs/cell_{name}.yml
# The cell phase of one (block, depth) with one trial per architecture: the web UI's hyper-parameter view shows which
# operation helps. Afterwards the best cells stand where cell.yml would have put them; repeat for every --block and
# --depth of the study, then block.yml goes on from there.
# Written by `make configs`. searchSpace is what `bertnas space STUDY --depth {depth} --nni FILE` writes; a trial
# refuses another.
# NNI's own keys alone stand here; ours are in the study that trialCommand names.
# `python` must be the one of the virtual environment: activate it first.
experimentName: bertnas cell, {name}
trialCommand: python -m trials.architecture --study {study} --block 0 --depth {depth}
trialCodeDirectory: ..
trialConcurrency: 2
maxTrialNumber: 20
"""


def write_cell_files(folder: Path, study_path: Path) -> list[Path]:
    """Write the experiment files of the cell phase by NNI's tuners: block 0, the study's greatest depth.

    Args:
        folder: `experiment_configs`.
        study_path: Of the study, from the folder above.

    Raises:
        ConfigError: The study cannot be read.
    """
    run = Run(load_study(folder.parent / study_path))
    depth = max(run.spaces)
    search_space = yaml.safe_dump({"searchSpace": nni_search_space(run.spaces[depth])}, sort_keys=False)
    written = []
    for name, (tuner, options, goal) in _TUNERS.items():
        head = _HEAD.format(name=name, depth=depth, study=study_path)
        arguments = yaml.safe_dump(options, sort_keys=False) if options else ""
        tail = f"tuner:\n  name: {tuner}\n  classArgs:\n    optimize_mode: minimize # {goal}\n"
        tail += "".join(f"    {line}\n" for line in arguments.splitlines())
        path = folder / f"cell_{name}.yml"
        path.write_text(f"{head}{search_space}{tail}trainingService:\n  platform: local\n", encoding="utf-8")
        written.append(path)
    return written


def check_nni_yaml(path: Path) -> list[str]:
    """The problems of an NNI experiment file of ours, empty when there is none.

    NNI's own reader checks its keys; then the trial command, the study it names, and the search space are checked.
    """
    read_yaml(path)
    try:
        config = ExperimentConfig.load(path)
        config.validate()
    except Exception as error:  # NNI raises whatever it likes, and does not tidy up
        unset_base_path()
        return [f"{path}: NNI refuses it: {error}"]
    words = shlex.split(config.trial_command)
    name = next((word.removeprefix("trials.") for word in words if word.startswith("trials.")), "")
    experiments = [stage for stage in STAGES if load(stage).optimize is not None]
    if name not in (*experiments, "architecture") or "--study" not in words[:-1]:
        return [f"{path}: trialCommand must be python -m trials.PHASE --study FILE, got {config.trial_command!r}"]
    try:
        study = load_study(path.parent / config.trial_code_directory / words[words.index("--study") + 1])
    except ConfigError as error:
        return [f"{path}: trialCommand: {error}"]
    found = config.search_space or {}
    if name == "architecture":
        return _check_architectures(path, words, study, found)
    wanted = load(name).parameters
    if set(found) != set(wanted):
        return [f"{path}: searchSpace must have {', '.join(wanted)}, got {', '.join(found) or 'none'}"]
    return []


def _check_architectures(path: Path, words: list[str], study: Study, search_space: dict[str, Any]) -> list[str]:
    numbers = {name: words[words.index(name) + 1] for name in ("--block", "--depth") if name in words[:-1]}
    if len(numbers) < 2 or not all(number.isdigit() for number in numbers.values()):
        return [f"{path}: trialCommand must end in --block NUMBER --depth NUMBER"]
    if study.cell.shared:
        return [f"{path}: trialCommand: cell.shared must be false where every trial is one architecture of one block"]
    depth = int(numbers["--depth"])
    if depth not in study.cell.depths:
        return [
            f"{path}: trialCommand: --depth must be one of the study's cell.depths, {study.cell.depths}, got {depth}"
        ]
    try:
        space: Space = Run(study).spaces[depth]
    except ConfigError as error:
        return [f"{path}: trialCommand: {error}"]
    if _unordered(search_space) != _unordered(nni_search_space(space)):
        return [
            f"{path}: searchSpace is not the study's space {space.name} at depth {depth}; write it anew with: "
            f"bertnas space {words[words.index('--study') + 1]} --depth {depth} --nni FILE"
        ]
    return []


def _unordered(search_space: dict[str, Any]) -> dict[str, Any]:
    """Label -> type and options, whose order says nothing; as texts, as a file may have whatever YAML can say."""
    ordered = {}
    for label, choice in search_space.items():
        values = choice.get("_value") if isinstance(choice, dict) else None
        ordered[label] = (choice.get("_type"), sorted(map(repr, values))) if isinstance(values, list) else choice
    return ordered
