"""The little that all phases share about training: a quiet Lightning trainer, the schedule, the callbacks."""

import copy
import signal
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
from torch import nn

from nni_bertnas.errors import CandidateError
from nni_bertnas.machine import Span, mixed_precision
from nni_bertnas.tracking.tracker import Progress
from nni_bertnas.training import resume
from nni_bertnas.training.distributed import RankTrainer

Report = Callable[[Mapping[str, float]], None]  # takes the metrics of one epoch
_LOSS_SECONDS = 0.5  # between two readings of a step's loss


class EpochReport(pl.Callback):
    """Hands every logged metric to `report` at the end of each training epoch."""

    def __init__(self, report: Report) -> None:
        self.report = report
        self.last: dict[str, float] = {}

    def state_dict(self) -> dict[str, Any]:
        """Called when a training is saved."""
        return {"last": self.last}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Called when it goes on."""
        self.last = state_dict["last"]

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Called by Lightning."""
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        optimizer = trainer.optimizers[0]
        metrics["learning_rate"] = optimizer.param_groups[0]["lr"]
        metrics["epoch"] = trainer.current_epoch
        self.last = metrics
        self.report(metrics)


class StepReport(pl.Callback):
    """Hands the steps done, and now and then the loss, to `progress` after each training step.

    Args:
        progress: Takes them.
    """

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self._loss: float | None = None
        self._next = 0.0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Called by Lightning."""
        now = time.monotonic()
        if now >= self._next and isinstance(outputs, Mapping):  # reading a loss waits for the device
            self._loss, self._next = float(outputs["loss"]), now + _LOSS_SECONDS
        epochs, batches = int(trainer.max_epochs or 1), int(trainer.num_training_batches)
        self.progress(trainer.current_epoch * batches + batch_idx + 1, epochs * batches, "steps", self._loss)


class KeepBest(pl.Callback):
    """Remembers the weights of the epoch with the highest metric and puts them into a model when training ends.

    Where the metric's noise is known, those of the last epoch within it of the highest (the one-standard-error rule of
    Breiman et al. 1984): on a small dev the highest is the luckiest of its epochs, and later ones have learnt more.

    Raises:
        CandidateError: At the end, where the weights were no finite numbers after any epoch.

    Args:
        metric: The higher, the better.
        model: Takes the weights.
        judged: Gives what the metric is of, a model of the same shape; None: it is the model itself.
        noise: Gives the standard error of the metric at the epoch that was just judged.
    """

    def __init__(
        self,
        metric: str,
        model: nn.Module,
        judged: Callable[[], nn.Module] | None = None,
        noise: Callable[[], float] = float,
    ) -> None:
        self.metric, self.noise = metric, noise
        self.model, self.judged = model, judged or (lambda: model)
        self.best = float("-inf")
        self.epoch = 0  # of all fits that it was given to
        self.metrics: dict[str, float] = {}  # of that epoch
        self._epochs = 0
        self._weights: dict[str, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        """Called when a training is saved."""
        names = ("best", "epoch", "metrics", "_epochs", "_weights")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Called when it goes on."""
        self.__dict__.update(state_dict)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Called by Lightning."""
        value = float(trainer.callback_metrics[self.metric])
        if value > self.best - self.noise() and _finite(self.judged()):
            self.best, self.epoch = max(value, self.best), self._epochs
            self.metrics = {name: float(metric) for name, metric in trainer.callback_metrics.items()}
            self._weights = copy.deepcopy(self.judged().state_dict())
        self._epochs += 1

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Called by Lightning."""
        if not self._weights:
            raise CandidateError("the training left no finite weights after any epoch; lower its learning_rate")
        self.model.load_state_dict(self._weights)


def _finite(model: nn.Module) -> bool:
    """Whether all weights are numbers: what is measured of others may look like a score."""
    return all(bool(one.isfinite().all()) for one in model.parameters())


class Clock(pl.Callback):
    """Times training steps, batches fetched included, and ends the training after a while.

    Args:
        limit: Seconds; some steps are made in any case.
    """

    UNCOUNTED = 3  # the first steps are slower than all others
    _COUNTED = 2  # at least

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.ends: list[Span] = []  # of every step

    def on_train_batch_end(self, trainer: pl.Trainer, *others: Any) -> None:
        """Called by Lightning."""
        self.ends.append(Span.now())
        enough = len(self.ends) >= self.UNCOUNTED + self._COUNTED
        trainer.should_stop |= enough and (self.ends[-1] - self.ends[0]).seconds > self.limit

    @property
    def step(self) -> Span:
        """Mean of the counted steps; of few steps, of all but the first."""
        first = max(0, min(self.UNCOUNTED, len(self.ends) - 1 - self._COUNTED))
        return (self.ends[-1] - self.ends[first]) / max(1, len(self.ends) - 1 - first)


def trainer_options(epochs: int, callbacks: Sequence[pl.Callback] = (), precision: str = "32-true") -> dict[str, Any]:
    """Arguments of a Lightning trainer that writes nothing to disk and prints nothing."""
    return {
        "max_epochs": epochs,
        "precision": precision,
        "callbacks": list(callbacks),
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }


def fit(
    module: pl.LightningModule, train: Iterable[Any], dev: Iterable[Any] | None, epochs: int,
    callbacks: Sequence[pl.Callback], *, precision: str = "float32", wide: bool = False, gradient_clip: float = 1.0,
) -> None:  # fmt: skip
    """Train a module, see :func:`~nni_bertnas.training.resume.train`; Ctrl-C goes on to the caller.

    Args:
        module: What is trained.
        train: Batches.
        dev: Batches for validation after every epoch; None: there is none.
        epochs: Of training.
        callbacks: Lightning's.
        precision: See :func:`~nni_bertnas.machine.mixed_precision`.
        wide: Likewise.
        gradient_clip: Norm.

    Raises:
        KeyboardInterrupt: Lightning was interrupted.
    """
    options = trainer_options(epochs, callbacks, mixed_precision(precision, wide))
    trainer = RankTrainer(gradient_clip_val=gradient_clip, **options)
    try:
        resume.train(trainer, module, train, dev)
    except SystemExit as error:  # what Lightning makes of Ctrl-C, after it has switched off further ones
        signal.signal(signal.SIGINT, signal.default_int_handler)
        before = error.__context__
        raise KeyboardInterrupt(*(before.args if isinstance(before, KeyboardInterrupt) else ())) from error
