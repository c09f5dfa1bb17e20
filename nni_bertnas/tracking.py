"""Where the numbers of a unit of work go: NNI's web UI, Weights & Biases when asked for, a terminal."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from nni_bertnas.config import TrackingSettings

_log = logging.getLogger(__name__)


class Channel(Protocol):
    """Takes what the web UI shows of a trial."""

    def intermediate(self, value: Mapping[str, float]) -> None:
        """One point of the trial's curves; `default` is the main one."""
        ...

    def final(self, value: Mapping[str, float]) -> None:
        """The trial's result; `default` is the main number."""
        ...


class Watcher(Protocol):
    """Takes what a person at a terminal may want to see of one unit of work."""

    def epoch(self, metrics: Mapping[str, float]) -> None:
        """The metrics of one epoch."""
        ...

    def progress(self, done: int, total: int) -> None:
        """How much of the work is done."""
        ...


class Tracker:
    """Takes the metrics of one unit of work and hands them to whoever listens."""

    def __init__(self, channel: Channel | None = None, wandb_run: Any = None, watcher: Watcher | None = None) -> None:
        self._channel = channel
        self._wandb_run = wandb_run
        self._watcher = watcher

    def epoch(self, metrics: Mapping[str, float], default: str) -> None:
        """The metrics of one epoch; `default` names the one whose curve the web UI shows first."""
        self._to_wandb("log", metrics)
        if self._watcher:
            self._watcher.epoch(metrics)
        if self._channel:
            shown = {name: value for name, value in metrics.items() if not name.startswith("probability/")}
            self._channel.intermediate({"default": metrics[default], **shown})

    def progress(self, done: int, total: int) -> None:
        """How much of the work is done."""
        if self._watcher:
            self._watcher.progress(done, total)

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


def start_wandb(
    settings: TrackingSettings, folder: Path, *, group: str, job_type: str, name: str, config: Mapping[str, Any]
) -> Any:
    """A run of Weights & Biases, None where it is off or does not start: tracking never stops a run.

    Args:
        settings: Whether, and into which project.
        folder: Where its files go.
        group: Of the run.
        job_type: Likewise.
        name: Of the run.
        config: What it shows as the run's settings.
    """
    mode = settings.wandb
    if mode == "off":
        return None
    if mode == "online" and not os.environ.get("WANDB_API_KEY"):
        _log.warning("tracking.wandb is online but WANDB_API_KEY is not set; logging offline instead")
        mode = "offline"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        import wandb  # an extra
    except ImportError:
        _log.warning("tracking.wandb is %s but wandb is not installed; pip install 'nni-bertnas[wandb]'", mode)
        return None
    for attempt in dict.fromkeys((mode, "offline")):
        try:
            return wandb.init(
                project=settings.project,
                group=group,
                job_type=job_type,
                name=name,
                config=dict(config),
                dir=folder,
                mode=attempt,
                settings=wandb.Settings(silent=True, init_timeout=30, disable_git=True, disable_code=True),
            )
        except Exception as error:  # no network, a wrong key: tracking never stops a run
            _log.warning("Weights & Biases did not start %s: %s", attempt, error)
    return None
