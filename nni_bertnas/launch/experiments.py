"""NNI experiments as `bertnas` runs them: made from the study, started, watched, stopped."""

import logging
import re
import shlex
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nni
from nni.experiment import Experiment
from nni.experiment.config import AlgorithmConfig, ExperimentConfig

from nni_bertnas.errors import PhaseError
from nni_bertnas.launch import trial_server
from nni_bertnas.launch.manager import Hold, MachineLost, ManagerLost, manager, talking
from nni_bertnas.stages.run import Run, Unit
from nni_bertnas.stages.stage import Stage, trials_at_once
from nni_bertnas.tracking.histories import HISTORY, WEB_UI, state_file, this_process, write_state

_POLL_SECONDS = 1.0
_ERROR = re.compile(r"(error|[A-Za-z_][\w.]*(Error|Exception|Interrupt|Exit)): ")  # how such a line begins
_FAILED = ("FAILED", "SYS_CANCELED", "USER_CANCELED")
_HOPELESS = 3  # trials that fail before any succeeds: what is wrong is wrong for all
_MANAGERS = 4  # one after another, for one stage
_log = logging.getLogger(__name__)

Progress = Callable[[list[Any], str], None]  # takes NNI's trial jobs and the web UI's address


def make_config(
    run: Run, study_path: Path, stage: Stage, units: Sequence[Unit], address: str | None = None
) -> ExperimentConfig:
    """The NNI experiment of one stage: a grid over its units, one trial each.

    Args:
        run: Of the study.
        study_path: The study's file, which the trials read.
        stage: Whose experiment it is.
        units: All units of the stage; NNI makes the trials in their order, which is the grid's.
        address: Of the server that starts trials quickly, see :mod:`~nni_bertnas.launch.trial_server`.
    """
    config = ExperimentConfig("local")
    config.experiment_name = f"{run.study.name} {stage.name}"
    quick = [] if address is None else [trial_server.__name__, address]
    command = [sys.executable, "-m", *quick, f"trials.{stage.name}", "--study", str(study_path.resolve())]
    config.trial_command = shlex.join(command)
    config.trial_code_directory = str(Path.cwd())
    config.trial_concurrency = trials_at_once(run, stage)
    config.max_trial_number = len(units)
    config.tuner = AlgorithmConfig(name="GridSearch", class_args={"optimize_mode": stage.optimize})
    config.search_space = {
        name: {"_type": "choice", "_value": list(dict.fromkeys(unit[name] for unit in units))} for name in units[0]
    }
    config.experiment_working_directory = str(run.nni.resolve())
    return config


@contextmanager
def announced(run: Run, stage: Stage) -> Iterator[Callable[[str], None]]:
    """Lets others find a stage's web UI as long as the block lasts.

    Yields:
        What takes its address.
    """
    folder = run.root / HISTORY

    def announce(address: str) -> None:
        with suppress(OSError):
            write_state(folder, WEB_UI, {"stage": stage.name, "address": address, **this_process()})

    try:
        yield announce
    finally:
        with suppress(OSError):
            state_file(folder, WEB_UI).unlink(missing_ok=True)


def quiet_nni() -> None:
    """Let what NNI says go into its log, warnings to the terminal."""
    nni.silence_stdout()


@dataclass(frozen=True)
class Failure:
    """A trial that failed.

    Attributes:
        parameters: Of the trial.
        why: The end of its error output, and where all of it is.
    """

    parameters: Mapping[str, Any]
    why: str


def run_experiment(
    make: Callable[[], ExperimentConfig], port: int, progress: Progress, hold: Hold | None = None
) -> list[Failure]:
    """As :func:`_run_once`; where NNI's manager or a machine is lost, another goes on: what has finished is reused.

    Args:
        make: Gives what to run, on the machines that are there.
        port: As there.
        progress: As there.
        hold: As there.
    """
    lost = 0
    while True:
        try:
            return _run_once(make(), port, progress, hold)
        except MachineLost as error:  # they get fewer each time
            _log.warning("%s", error)
        except ManagerLost as error:
            lost += 1
            if lost == _MANAGERS:
                raise
            _log.warning("%s (%d of at most %d times this command does so)", error, lost, _MANAGERS - 1)


def _run_once(config: ExperimentConfig, port: int, progress: Progress, hold: Hold | None) -> list[Failure]:
    """Run one NNI experiment to its end; whatever happens, no NNI process is left behind.

    Args:
        config: What to run.
        port: Of the web UI; the next free one is taken.
        progress: Called about once a second.
        hold: Finds and holds the port; see :func:`~nni_bertnas.launch.manager.manager`.

    Returns:
        The trials that failed, beside others that did not.

    Raises:
        PhaseError: All trials fail; with the end of the first one's error output.
        ManagerLost: NNI's manager has ended.
        MachineLost: A machine has gone.
    """
    quiet_nni()
    experiment = Experiment(config)
    with manager(experiment, port, hold) as port:
        while True:
            with talking(experiment):
                jobs, status = experiment.list_trial_jobs(), experiment.get_status()
            progress(jobs, f"http://127.0.0.1:{port}")
            failed = [job for job in jobs if job.status in _FAILED]
            done = sum(job.status == "SUCCEEDED" for job in jobs)
            if not done and len(failed) >= min(_HOPELESS, config.max_trial_number) and config.max_trial_number > 1:
                raise PhaseError(_why(experiment, config, failed[0]))
            if len(failed) + done == config.max_trial_number:
                return [Failure(_parameters(job), _why(experiment, config, job)) for job in failed]
            if status == "ERROR":
                raise PhaseError(
                    f"NNI stopped with an error; see {config.experiment_working_directory}/{experiment.id}/log"
                )
            time.sleep(_POLL_SECONDS)


def _parameters(job: Any) -> Mapping[str, Any]:
    found: Mapping[str, Any] = job.hyperParameters[0].parameters if job.hyperParameters else {}
    return found


def _why(experiment: Experiment, config: ExperimentConfig, job: Any) -> str:
    with suppress(OSError):  # NNI fetches what lies on another machine
        urllib.request.urlopen(
            f"http://127.0.0.1:{experiment.port}/api/v1/nni/trial-file/{job.trialJobId}/stderr", timeout=30
        )
    root = Path(config.experiment_working_directory, experiment.id)
    path = next(root.rglob(f"{job.trialJobId}/trial.stderr"), root)
    said = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    return f"trial {_parameters(job)} ended {job.status}: {gist(said) or 'no message'} (all of it: {path})"


def gist(said: str) -> str:
    """The line of an error output that names the last error, whose message may go on below it; else the last line."""
    lines = said.strip().splitlines()
    return next((line for line in reversed(lines) if _ERROR.match(line)), lines[-1] if lines else "")
