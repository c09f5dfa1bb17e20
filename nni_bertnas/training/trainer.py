"""The little that all phases share about training: a quiet Lightning trainer, the schedule, the callbacks."""

import copy
import logging
import signal
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

# NNI's torch wrappers and Lightning speak of these at every import or fit; none of them is ours to mend.
for _message in (
    r".*Buffer.*is not supported.*",
    r".*LinearCrossEntropyOptions.*",
    r".*does not have many workers.*",
    r".*defined a `validation_step` but have no.*",  # it is for ENAS alone
    r".*isinstance\(treespec, LeafSpec\).*",
):
    warnings.filterwarnings("ignore", message=_message)

import pytorch_lightning as pl  # noqa: E402

logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)

from nni_bertnas.config import num_cores  # noqa: E402

Report = Callable[[Mapping[str, float]], None]  # takes the metrics of one epoch


def best_device() -> torch.device:
    """The accelerator of this machine, or its CPU."""
    return torch.accelerator.current_accelerator() or torch.device("cpu")


def mixed_precision(precision: str, wide: bool = False) -> str:
    """Lightning's name of a study's `student.precision` on this machine.

    `auto` is mixed precision with bfloat16 on CUDA devices that have it, and, for wide steps, on CPUs with units for
    products of matrices (AMX). Elsewhere it was measured to gain nothing (README, "What a search and its steps cost").

    Args:
        precision: The study's.
        wide: Whether a step has enough to do to pay for the conversions: several cells at a batch of dozens of rows.
    """
    device = best_device()
    if precision == "auto":
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        fast |= wide and device.type == "cpu" and bool(torch.cpu.get_capabilities().get("amx_bf16"))
        precision = "bfloat16" if fast else "float32"
    return {"float32": "32-true", "bfloat16": "bf16-mixed"}[precision]


def set_threads(concurrency: int, threads: int | None) -> None:
    """Give this process its share of the cores, so that concurrent trials do not fight over them."""
    torch.set_num_threads(threads or max(1, num_cores() // concurrency))


class EpochReport(pl.Callback):
    """Hands every logged metric to `report` at the end of each training epoch."""

    def __init__(self, report: Report) -> None:
        self.report = report

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Called by Lightning."""
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        optimizer = trainer.optimizers[0]
        metrics["learning_rate"] = optimizer.param_groups[0]["lr"]
        metrics["epoch"] = trainer.current_epoch
        self.report(metrics)


class KeepBest(pl.Callback):
    """Remembers the weights of the epoch with the highest metric and puts them back when training ends."""

    def __init__(self, metric: str, model: nn.Module) -> None:
        self.metric = metric
        self.model = model
        self.best = float("-inf")
        self.epoch = 0
        self._weights: dict[str, Any] = {}

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Called by Lightning."""
        value = float(trainer.callback_metrics[self.metric])
        if value > self.best:
            self.best, self.epoch = value, trainer.current_epoch
            self._weights = copy.deepcopy(self.model.state_dict())

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Called by Lightning."""
        self.model.load_state_dict(self._weights)


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
    module: pl.LightningModule, train: Iterable[Any], dev: Iterable[Any], epochs: int, callbacks: Sequence[pl.Callback],
    precision: str = "float32",
) -> None:  # fmt: skip
    """Train a module; Ctrl-C goes on to the caller. Precision: see :func:`mixed_precision`.

    Raises:
        KeyboardInterrupt: Lightning was interrupted.
    """
    trainer = pl.Trainer(gradient_clip_val=1.0, **trainer_options(epochs, callbacks, mixed_precision(precision)))
    try:
        trainer.fit(module, train, dev)
    except SystemExit as error:  # what Lightning makes of Ctrl-C, after it has switched off further ones
        signal.signal(signal.SIGINT, signal.default_int_handler)
        raise KeyboardInterrupt from error


def adamw_linear(
    groups: Any,
    learning_rate: float,
    weight_decay: float,
    warmup: float,
    steps: int,
    kind: type[Optimizer] = torch.optim.AdamW,
) -> dict[str, Any]:
    """AdamW whose rate rises over the first `warmup` share of `steps` and then falls to 0, by step.

    Fused, as on CPU the other way allocates the size of each parameter several times over and passes over it.
    """
    optimizer = kind(groups, lr=learning_rate, weight_decay=weight_decay, fused=True)  # type: ignore[call-arg]
    # In mixed precision Lightning clips nothing for a fused optimizer, lest gradients are scaled; bfloat16's are not.
    optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
    rising = max(1, round(warmup * steps))

    def scale(step: int) -> float:
        return min((step + 1) / rising, max(0.0, (steps - step) / max(1, steps - rising)))

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, scale)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
