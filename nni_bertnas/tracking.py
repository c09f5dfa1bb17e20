"""Where the numbers of a trial go: NNI's web UI and, when asked for, Weights & Biases."""

import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nni_bertnas.artifacts import RunDirectory
from nni_bertnas.config import Study, study_to_dict

_log = logging.getLogger(__name__)


class NniChannel:
    """The line from this trial to NNI, taken before anything swaps it.

    A `NasExperiment` running inside a trial replaces NNI's trial command channel while a model trains, and what is
    reported then goes to that inner experiment. This keeps hold of the outer one.
    """

    def __init__(self) -> None:
        import nni.trial
        from nni.runtime.trial_command_channel import get_default_trial_command_channel

        self._channel = get_default_trial_command_channel()
        with _turn():
            self.parameters: dict[str, Any] = nni.get_next_parameter() or {}
        self._parameter_id = nni.trial._params["parameter_id"] if nni.trial._params else None
        self._sequence = 0

    def _send(self, kind: str, sequence: int, value: Mapping[str, float]) -> None:
        from nni.runtime.env_vars import trial_env_vars

        self._channel.send_metric(kind, self._parameter_id, trial_env_vars.NNI_TRIAL_JOB_ID, sequence, dict(value))

    def intermediate(self, value: Mapping[str, float]) -> None:
        """One point of the trial's curves; `default` is the main one."""
        self._send("PERIODICAL", self._sequence, value)
        self._sequence += 1

    def final(self, value: Mapping[str, float]) -> None:
        """The trial's result; `default` is the main number."""
        self._send("FINAL", 0, value)


@contextmanager
def _turn(patience_seconds: float = 60.0) -> Iterator[None]:
    """Let the trials of one machine ask NNI for their parameters in the order in which NNI made them.

    NNI 3.0 hands parameters to trials in the order of their requests, whatever parameters it shows for them: of two
    that start together, each may get the other's, and the web UI then shows results under the wrong parameters.
    """
    from nni.runtime.env_vars import trial_env_vars

    number, output = int(trial_env_vars.NNI_TRIAL_SEQ_ID or -1), trial_env_vars.NNI_OUTPUT_DIR
    if number < 0 or output is None or trial_env_vars.NNI_PLATFORM != "local":
        yield
        return
    turns = Path(output).parent / "turns"
    turns.mkdir(exist_ok=True)
    deadline = time.monotonic() + patience_seconds
    while number > 0 and not (turns / str(number - 1)).exists():
        if time.monotonic() > deadline:
            _log.warning("trial %d did not ask for its parameters; going on without it", number - 1)
            break
        time.sleep(0.05)
    yield
    (turns / str(number)).touch()


class Tracker:
    """Takes the metrics of one unit of work and hands them to whoever listens."""

    def __init__(self, channel: NniChannel | None = None, wandb_run: Any = None) -> None:
        self._channel = channel
        self._wandb_run = wandb_run

    def epoch(self, metrics: Mapping[str, float], default: str) -> None:
        """The metrics of one epoch; `default` names the one whose curve the web UI shows first."""
        self._to_wandb("log", metrics)
        if self._channel:
            shown = {name: value for name, value in metrics.items() if not name.startswith("probability/")}
            self._channel.intermediate({"default": metrics[default], **shown})

    def final(self, metrics: Mapping[str, float]) -> None:
        """The result; has a `default`."""
        self._to_wandb("log", {f"final/{name}": value for name, value in metrics.items()})
        if self._channel:
            self._channel.final(metrics)

    def _to_wandb(self, method: str, metrics: Mapping[str, float]) -> None:
        if self._wandb_run is None:
            return
        try:
            getattr(self._wandb_run, method)(dict(metrics))
        except Exception as error:  # whatever W&B does, the run goes on
            _log.warning("Weights & Biases stopped taking metrics: %s", error)
            self._wandb_run = None

    def close(self) -> None:
        """Write out what W&B still holds."""
        if self._wandb_run is not None:
            try:
                self._wandb_run.finish()
            except Exception as error:
                _log.warning("Weights & Biases did not finish: %s", error)


@contextmanager
def open_tracker(study: Study, phase: str, unit: str, channel: NniChannel | None = None) -> Iterator[Tracker]:
    """A tracker for one unit of work: one W&B run in the study's group with the phase as job type.

    Args:
        study: The study, whose `tracking` says whether W&B takes part.
        phase: `teacher`, `cell`, `block` or `supernet`.
        unit: Name of the run, e.g. `block0_depth2`.
        channel: The line to NNI inside a trial.
    """
    tracker = Tracker(channel, _start_wandb(study, phase, unit))
    try:
        yield tracker
    finally:
        tracker.close()


def _start_wandb(study: Study, phase: str, unit: str) -> Any:
    mode = study.tracking.wandb
    if mode == "off":
        return None
    if mode == "online" and not os.environ.get("WANDB_API_KEY"):
        _log.warning("tracking.wandb is online but WANDB_API_KEY is not set; logging offline instead")
        mode = "offline"
    folder = RunDirectory(study).root
    folder.mkdir(parents=True, exist_ok=True)
    try:
        import wandb
    except ImportError:
        _log.warning("tracking.wandb is %s but wandb is not installed; pip install 'nni-bertnas[wandb]'", mode)
        return None
    for attempt in dict.fromkeys((mode, "offline")):
        try:
            return wandb.init(
                project=study.tracking.project,
                group=study.name,
                job_type=phase,
                name=f"{phase}-{unit}",
                config=study_to_dict(study),
                dir=folder,
                mode=attempt,
                settings=wandb.Settings(silent=True, init_timeout=30, disable_git=True, disable_code=True),
            )
        except Exception as error:  # no network, a wrong key: tracking never stops a run
            _log.warning("Weights & Biases did not start %s: %s", attempt, error)
    return None
