"""Where the numbers of a unit of work go: its books, NNI's web UI, Weights & Biases when asked for, a terminal."""

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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

    def progress(self, done: int, total: int, what: str = "rows", loss: float | None = None) -> None:
        """How much of the work is done; `what` names the pieces, `loss` is the last one of a training."""
        ...


class Progress(Protocol):
    """Takes how much of a piece of work is done; :meth:`Tracker.progress` is one."""

    def __call__(self, done: int, total: int, what: str = "rows", loss: float | None = None) -> None:
        """See :class:`Watcher`."""
        ...


def unwatched(done: int, total: int, what: str = "rows", loss: float | None = None) -> None:
    """The progress that nobody looks at."""


class Book(Protocol):
    """Keeps what a unit of work reports, from its beginning to its end."""

    def begin(self, kept: Sequence[Mapping[str, Any]] = ()) -> None:
        """The unit is begun, perhaps anew; epochs of an earlier attempt that it goes on behind are kept."""
        ...

    def epoch(self, metrics: Mapping[str, float]) -> None:
        """The metrics of one epoch."""
        ...

    def final(self, metrics: Mapping[str, float]) -> None:
        """The result."""
        ...

    def end(self, state: str) -> None:
        """The unit is `done`, `stopped`, or was `reused` as it stood."""
        ...

    def close(self) -> None:
        """Nothing more comes."""
        ...


class Tracker:
    """Takes the metrics of one unit of work and hands them to whoever listens.

    Args:
        channel: The line to NNI inside a trial.
        wandb_run: Of Weights & Biases.
        watcher: A person's terminal.
        books: Keep everything.
    """

    def __init__(
        self, channel: Channel | None = None, wandb_run: Any = None, watcher: Watcher | None = None,
        books: Sequence[Book] = (),
    ) -> None:  # fmt: skip
        self._channel = channel
        self._wandb_run = wandb_run
        self._watcher = watcher
        self._books = books
        self.epochs = 0  # so far, of the unit and its parts

    @contextmanager
    def working(self, kept: Sequence[Mapping[str, Any]] = ()) -> Iterator[None]:
        """The unit is made as long as the block lasts, behind epochs of an earlier attempt."""
        self.epochs = len(kept)
        for book in self._books:
            book.begin(kept)
        state = "stopped"
        try:
            yield
            state = "done"
        finally:
            for book in self._books:
                book.end(state)

    def reuse(self) -> None:
        """The unit was there and still fits."""
        for book in self._books:
            book.end("reused")

    def epoch(self, metrics: Mapping[str, float], default: str | None) -> None:
        """The metrics of one epoch.

        Args:
            metrics: By name.
            default: The one whose curve the web UI shows first; None: it shows none of them.
        """
        self.epochs += 1
        self._to_wandb(lambda run: run.log(dict(metrics)))
        for book in self._books:
            book.epoch(metrics)
        if self._watcher:
            self._watcher.epoch(metrics)
        if self._channel and default is not None:
            shown = {name: value for name, value in metrics.items() if not name.startswith("probability/")}
            self._channel.intermediate({"default": metrics[default], **shown})

    def progress(self, done: int, total: int, what: str = "rows", loss: float | None = None) -> None:
        """How much of the work is done; see :class:`Watcher`."""
        if self._watcher:
            self._watcher.progress(done, total, what, loss)

    def part(self, name: str) -> "Tracker":
        """What takes the metrics of a training inside this unit, e.g. of a finalist; they go by the part's name."""
        return _Part(self, name)

    def final(self, metrics: Mapping[str, float]) -> None:
        """The result; has a `default`."""
        self._to_wandb(lambda run: run.log({f"final/{name}": value for name, value in metrics.items()}))
        for book in self._books:
            book.final(metrics)
        if self._channel:
            self._channel.final(metrics)

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Rows of equal columns, for Weights & Biases."""

        def log(run: Any) -> None:
            import wandb  # an extra

            columns: list[str | int] = list(rows[0])
            data = [list(one.values()) for one in rows]
            run.log({name: wandb.Table(columns=columns, data=data)})

        if rows:
            self._to_wandb(log)

    def artifact(self, name: str, folder: Path, facts: Mapping[str, float]) -> None:
        """A saved model, for Weights & Biases.

        Args:
            name: Of the artifact.
            folder: Of the model; its files are not copied.
            facts: Shown with it.
        """

        def log(run: Any) -> None:
            import wandb  # an extra

            model = wandb.Artifact(name, type="model", metadata=dict(facts))
            model.add_dir(str(folder), skip_cache=True, policy="immutable")
            run.log_artifact(model)

        self._to_wandb(log)

    def _to_wandb(self, action: Callable[[Any], None]) -> None:
        if self._wandb_run is None:
            return
        try:
            action(self._wandb_run)
        except Exception as error:  # whatever W&B does, the run goes on
            _log.warning("Weights & Biases stopped taking metrics: %s", error)
            self._wandb_run = None

    def close(self) -> None:
        """Write out what the books and W&B still hold."""
        for book in self._books:
            book.close()
        if self._wandb_run is not None:
            try:
                self._wandb_run.finish()
            except Exception as error:
                _log.warning("Weights & Biases did not finish: %s", error)


class _Part(Tracker):
    """Hands the metrics of a part of a unit's work on to the unit's tracker, by the part's name."""

    def __init__(self, whole: Tracker, name: str) -> None:
        super().__init__()
        self._whole, self._name = whole, name

    def epoch(self, metrics: Mapping[str, float], default: str | None) -> None:
        """No curve of NNI's, as these numbers are not those of the unit."""
        named = {key if key == "epoch" else f"{self._name}/{key}": value for key, value in metrics.items()}
        self._whole.epoch(named, None)

    def progress(self, done: int, total: int, what: str = "rows", loss: float | None = None) -> None:
        """As of the unit."""
        self._whole.progress(done, total, what, loss)

    def part(self, name: str) -> Tracker:
        """A part of the part."""
        return _Part(self, name)


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
