"""The cell phase with one NNI trial per architecture, so that the web UI shows which operation helps.

A trial's parameters are the space's decisions. Each trained cell is kept; the ranking of its (block, depth) is written
anew after every trial, in the cell phase's own format, so that the block phase goes on from it.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from nni_bertnas.artifacts import RunDirectory, atomic_folder, fingerprint, read_result, write_result
from nni_bertnas.config import Study
from nni_bertnas.errors import CandidateError, ConfigError
from nni_bertnas.search.strategies import Search, write
from nni_bertnas.search.watch import collapse
from nni_bertnas.stages.cell import make_search
from nni_bertnas.store.reader import ensure_features, features_fingerprint, open_features, study_edges
from nni_bertnas.student.candidates import save_candidates
from nni_bertnas.student.cost import count_params
from nni_bertnas.tracking import Tracker
from nni_bertnas.training.teacher import ensure_teacher
from search_space.cells import (
    Architecture,
    count_architectures,
    find_space,
    list_choices,
    make_operation,
    space_operations,
    spell,
)

if TYPE_CHECKING:
    from rich.console import Console

_TRAINING = ("space", "epochs", "batch_size", "learning_rate", "weight_decay", "gradient_clip", "max_rows")


def _options(study: Study, depth: int) -> dict[str, dict[str, Any]]:
    """Label -> text -> choice."""
    width = study.student.hidden_size
    try:
        operations = space_operations(study.cell.space, width, study.cell.operations)
    except ValueError as error:
        raise ConfigError(f"cell.space, cell.operations: {error}") from error
    choices = list_choices(study.cell.space, depth, operations, width)
    return {label: {write(one): one for one in options} for label, options in choices.items()}


def nni_search_space(study: Study, depth: int) -> dict[str, dict[str, Any]]:
    """NNI's search space of the architectures of one depth.

    Raises:
        ConfigError: The study's space cannot be made.
    """
    return {label: {"_type": "choice", "_value": list(options)} for label, options in _options(study, depth).items()}


def read_parameters(study: Study, depth: int, parameters: Mapping[str, Any]) -> Architecture:
    """The architecture that an NNI trial's parameters stand for.

    Raises:
        ConfigError: They are not decisions of the study's space.
    """
    options = _options(study, depth)
    wrong = sorted(set(options) ^ set(parameters))
    # In lists, as a value that was written as a list has no hash.
    wrong += [f"{label}: {parameters[label]!r}" for label in options
              if label in parameters and parameters[label] not in list(options[label])]  # fmt: skip
    if wrong:
        raise ConfigError(
            f"searchSpace does not match the study's space {study.cell.space} at depth {depth} ({', '.join(wrong)}); "
            f"write it anew with: bertnas space STUDY --depth {depth} --nni FILE"
        )
    choices = {label: options[label][parameters[label]] for label in options}
    return find_space(study.cell.space).canonical(choices)


def write_search_space(study: Study, depth: int, path: Path) -> None:
    """Write NNI's search space, as JSON where the path ends so, else as YAML.

    Raises:
        ConfigError: The file cannot be written.
    """
    space = nni_search_space(study, depth)
    text = json.dumps(space, indent=1) if path.suffix == ".json" else yaml.safe_dump(space, sort_keys=False)
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--nni {path}: cannot be written ({error.strerror}); give another path") from error


def show_space(study: Study, depth: int, console: "Console") -> None:
    """Print a study's space as a table: every decision, what each operation costs, how many architectures there are."""
    from rich.table import Table

    width = study.student.hidden_size
    decisions = Table(title=f"space {study.cell.space}, depth {depth}, width {width}")
    for column in ("decision", "options", "which"):
        decisions.add_column(column, justify="right" if column == "options" else "left")
    options = _options(study, depth)
    for label, some in options.items():
        decisions.add_row(label, str(len(some)), ", ".join(some))
    operations = space_operations(study.cell.space, width, study.cell.operations)
    sizes = Table(title="parameters of each operation")
    sizes.add_column("operation")
    sizes.add_column("parameters", justify="right")
    for name in operations:
        sizes.add_row(name, f"{count_params(make_operation(name, width)):,}")
    console.print(decisions)
    console.print(sizes)
    for one in sorted({*study.cell.depths, depth}):
        count = count_architectures(study.cell.space, one, operations, width)
        console.print(f"depth {one}: {count:,} architectures", highlight=False)


def _trials(study: Study, block: int, depth: int) -> Path:
    target = RunDirectory(study).cell(block, depth)
    return target.with_name(f"{target.name}_trials")


def _settings(study: Study, block: int, depth: int) -> str:
    training = {name: getattr(study.cell, name) for name in _TRAINING}
    features = features_fingerprint(study, study_edges(study))
    return fingerprint(features, study.seed, study.student.hidden_size, training, block, depth)


def run(
    study: Study, block: int, depth: int, parameters: Mapping[str, Any], tracker: Tracker | None = None
) -> dict[str, Any]:
    """Train and score the cell of one architecture from fresh weights; a finished one that still fits is reused.

    Makes the teacher and the features first where they are missing.

    Args:
        study: The study.
        block: Number of the block, from 0.
        depth: Searchable layers.
        parameters: NNI's, see :func:`nni_search_space`.
        tracker: Takes the metrics.

    Returns:
        The cell's result: fingerprint, block, depth, candidates (this one).

    Raises:
        ConfigError: The parameters do not match the study, which may not have the block or the depth.
        CandidateError: The cell did not train, or is dearer than `cell.max_cost`.
    """
    tracker = tracker or Tracker()
    if depth not in study.cell.depths:
        raise ConfigError(f"--depth must be one of cell.depths {study.cell.depths}, got {depth}; correct trialCommand")
    if study.cell.shared:
        raise ConfigError("cell.shared must be false where every trial is one architecture of one block")
    architecture = read_parameters(study, depth, parameters)
    ensure_teacher(study)
    edges = ensure_features(study)["edges"]
    if not 0 <= block < len(edges) - 1:
        raise ConfigError(f"--block must be 0 to {len(edges) - 2}, got {block}; correct trialCommand")
    search = make_search(study, block, depth, edges, tracker)
    if not search.affordable(architecture):
        cost = search.cost(architecture)
        raise CandidateError(f"{spell(architecture)}: its {study.cell.cost} {cost:g} is over cell.max_cost")
    expected = fingerprint(_settings(study, block, depth), architecture)
    folder = _trials(study, block, depth) / expected
    result = read_result(folder, expected)
    if result is None:
        result = _train(study, block, depth, architecture, search, folder)
    _rank(study, block, depth, search)
    best = result["candidates"][0]
    tracker.final(
        {"default": best["score"], **{name: best[name] for name in ("num_params", "num_flops", "latency_ms")}}
    )
    return result


def _train(
    study: Study, block: int, depth: int, architecture: Architecture, search: Search, target: Path
) -> dict[str, Any]:
    from nni_bertnas.training.trainer import pl

    pl.seed_everything(study.seed, verbose=False)
    evaluator = search.make_evaluator()
    cells = [search.space.build(architecture)]
    evaluator.start_maps(cells)
    try:
        scores = evaluator.fit_cells(cells, study.cell.epochs)
    except CandidateError as error:
        raise CandidateError(f"{spell(architecture)}: {error}") from error
    train, dev = open_features(study, "train"), open_features(study, "dev")
    result: dict[str, Any] = {"fingerprint": target.name, "block": block, "depth": depth}
    with RunDirectory(study).lock("ranking"):
        # A tuner may propose an architecture twice; the twin that ends first is kept.
        if (twin := read_result(target, target.name)) is not None:
            return twin
        with atomic_folder(target) as folder:
            found = [search.found(architecture, cells, scores)]
            result["candidates"] = save_candidates(folder, found, train.hidden_size, dev.lengths.tolist())
            write_result(folder, study, result)
    return result


def _rank(study: Study, block: int, depth: int, search: Search) -> None:
    """Write the ranking of all trials that fit; the cell phase's own search is not found finished by it."""
    directory = RunDirectory(study)
    settings = _settings(study, block, depth)
    with directory.lock("ranking"):
        fitting = []
        for folder in _trials(study, block, depth).iterdir():
            result = None if folder.name.startswith(".") else read_result(folder)
            if result is None:
                continue
            (one,) = result["candidates"]
            fits = result["fingerprint"] == fingerprint(settings, one["architecture"])
            if fits and search.affordable(one["architecture"]):
                fitting.append((one, folder / one["weights"]))
        fitting.sort(key=lambda pair: pair[0]["score"])
        kept = fitting[: study.cell.candidates]
        with atomic_folder(directory.cell(block, depth)) as folder:
            candidates = []
            for rank, (one, weights) in enumerate(kept):
                candidates.append({**one, "weights": f"candidate_{rank}.safetensors"})
                shutil.copyfile(weights, folder / candidates[-1]["weights"])
            result = {
                "fingerprint": fingerprint(settings, [one["architecture"] for one in candidates]),
                "block": block,
                "depth": depth,
                "space": study.cell.space,
                "strategy": "one NNI trial per architecture",
                "num_searched": len(fitting),
                "collapsed": collapse(candidates[0]["architecture"], study.student.hidden_size),
                "candidates": candidates,
            }
            write_result(folder, study, result)
