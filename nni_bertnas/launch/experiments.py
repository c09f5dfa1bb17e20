"""NNI experiments as `bertnas` runs them: made from the study, started, watched, stopped."""

import logging
import os
import shlex
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from nni_bertnas.artifacts import RunDirectory
from nni_bertnas.config import Study, read_yaml
from nni_bertnas.errors import ConfigError, PhaseError
from nni_bertnas.stages import block, cell, supernet

if TYPE_CHECKING:
    from nni.experiment import Experiment
    from nni.experiment.config import ExperimentConfig

PHASES: dict[str, ModuleType] = {"cell": cell, "block": block, "supernet": supernet}
_LOOPBACK = Path(__file__).with_name("loopback.js")
_POLL_SECONDS = 1.0

Progress = Callable[[list[Any], str], None]  # takes NNI's trial jobs and the web UI's address


def make_config(
    study: Study, study_path: Path, phase: str, units: list[dict[str, Any]], address: str | None = None
) -> "ExperimentConfig":
    """The NNI experiment of one phase: a grid over its units, one trial each.

    Args:
        study: The study.
        study_path: Its file, which the trials read.
        phase: A key of PHASES.
        units: All units of the phase; NNI makes the trials in their order, which is the grid's.
        address: Of the server that starts trials quickly, see :mod:`~nni_bertnas.launch.trial_server`.
    """
    from nni.experiment.config import AlgorithmConfig, ExperimentConfig

    config = ExperimentConfig("local")
    config.experiment_name = f"{study.name} {phase}"
    quick = [] if address is None else ["nni_bertnas.launch.trial_server", address]
    command = [sys.executable, "-m", *quick, f"trials.{phase}", "--study", str(study_path.resolve())]
    config.trial_command = shlex.join(command)
    config.trial_code_directory = str(Path.cwd())
    config.trial_concurrency = study.concurrency(phase)
    config.max_trial_number = len(units)
    config.tuner = AlgorithmConfig(name="GridSearch", class_args={"optimize_mode": PHASES[phase].OPTIMIZE})
    config.search_space = {
        name: {"_type": "choice", "_value": list(dict.fromkeys(unit[name] for unit in units))} for name in units[0]
    }
    config.experiment_working_directory = str((RunDirectory(study).nni).resolve())
    return config


def run_experiment(config: "ExperimentConfig", port: int, progress: Progress) -> None:
    """Run one NNI experiment to its end; whatever happens, no NNI process is left behind.

    Args:
        config: What to run.
        port: Of the web UI; the next free one is taken.
        progress: Called about once a second.

    Raises:
        PhaseError: A trial failed; with the end of its error output.
    """
    from nni.experiment import Experiment

    logging.getLogger("nni").setLevel(logging.WARNING)
    experiment = Experiment(config)
    port = free_port(port)
    # The portal has no password: keep it on this machine.
    with environment(NODE_OPTIONS=f"--require {_LOOPBACK}"):
        experiment.start(port)
    try:
        while True:
            jobs = experiment.list_trial_jobs()
            progress(jobs, f"http://127.0.0.1:{port}")
            if failed := [job for job in jobs if job.status in ("FAILED", "SYS_CANCELED", "USER_CANCELED")]:
                raise PhaseError(_why(experiment, config, failed[0]))
            if len(jobs) == config.max_trial_number and all(job.status == "SUCCEEDED" for job in jobs):
                return
            if experiment.get_status() == "ERROR":
                raise PhaseError(
                    f"NNI stopped with an error; see {config.experiment_working_directory}/{experiment.id}/log"
                )
            time.sleep(_POLL_SECONDS)
    finally:
        experiment.stop()


def _why(experiment: "Experiment", config: "ExperimentConfig", job: Any) -> str:
    root = Path(config.experiment_working_directory, experiment.id)
    path = next(root.rglob(f"{job.trialJobId}/trial.stderr"), root)
    tail = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:] if path.is_file() else []
    parameters = job.hyperParameters[0].parameters if job.hyperParameters else {}
    return f"trial {parameters} ended {job.status}: {''.join(tail) or 'no message'} (all of it: {path})"


def free_port(first: int) -> int:
    """The first port from `first` on that nobody on this machine listens on.

    Raises:
        ConfigError: None of the next hundred is free.
    """
    for port in range(first, min(first + 100, 65536)):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue
    raise ConfigError(f"nni.port: no free port from {first} on; choose another")


@contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Set environment variables for a while."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def check_nni_yaml(path: Path) -> list[str]:
    """The problems of an NNI experiment file of ours, empty when there is none.

    NNI's own reader checks its keys; then the trial command, the study it names, and the search space are checked.
    """
    from nni.experiment.config import ExperimentConfig
    from nni.experiment.config.utils import unset_base_path

    from nni_bertnas.config import load_study

    read_yaml(path)
    try:
        config = ExperimentConfig.load(path)
        config.validate()
    except Exception as error:  # NNI raises whatever it likes, and does not tidy up
        unset_base_path()
        return [f"{path}: NNI refuses it: {error}"]
    words = shlex.split(config.trial_command)
    phase = next((word.removeprefix("trials.") for word in words if word.startswith("trials.")), "")
    if phase not in (*PHASES, "architecture") or "--study" not in words[:-1]:
        return [f"{path}: trialCommand must be python -m trials.PHASE --study FILE, got {config.trial_command!r}"]
    study_path = path.parent / config.trial_code_directory / words[words.index("--study") + 1]
    try:
        study = load_study(study_path)
    except ConfigError as error:
        return [f"{path}: trialCommand: {error}"]
    if phase == "architecture":
        return _check_architectures(path, words, study, config.search_space or {})
    problems = []
    wanted = PHASES[phase].NAMES
    if set(config.search_space or {}) != set(wanted):
        problems.append(
            f"{path}: searchSpace must have {', '.join(wanted)}, got {', '.join(config.search_space or {}) or 'none'}"
        )
    return problems


def _check_architectures(path: Path, words: list[str], study: Study, search_space: dict[str, Any]) -> list[str]:
    from nni_bertnas.stages.architecture import nni_search_space

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
        wanted = nni_search_space(study, depth)
    except ConfigError as error:
        return [f"{path}: trialCommand: {error}"]
    if _unordered(search_space) != _unordered(wanted):
        return [
            f"{path}: searchSpace is not the study's space {study.cell.space} at depth {depth}; write it anew with: "
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
