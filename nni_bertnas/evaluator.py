"""The distillation evaluator: what NNI's strategies call to train and score a cell."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import nni
import numpy as np
import torch
from nni.nas.evaluator.pytorch import DataLoader, Lightning, LightningModule, Trainer
from torch import Tensor, nn

from nni_bertnas.data import make_loader
from nni_bertnas.distill import masked_absolute_sum, masked_mse, reduced_rank_regression
from nni_bertnas.errors import CandidateError
from nni_bertnas.features import FeatureDataset, FeatureStore
from nni_bertnas.training import EpochReport, Report, adamw_linear, trainer_options

_log = logging.getLogger(__name__)
_REGRESSION_TOKENS = 50_000  # enough for a few hundred units
OnTrained = Callable[[nn.Module, float], None]  # takes a trained cell and its block score


@torch.inference_mode()
def block_score(cell: nn.Module, store: FeatureStore, entry: int, exit_: int, batch_size: int = 128) -> float:
    """Relative L1 of a cell on one split: mean|S - T| / std(T), lower is better.

    DNA, arXiv 1911.13053; comparable between blocks. The cell is left in eval mode.
    """
    cell.eval()
    device = next((parameter.device for parameter in cell.parameters()), torch.device("cpu"))
    total = 0.0
    for batch in make_loader(FeatureDataset(store, (entry, exit_)), batch_size, shuffle=False):
        hidden, target = (part.to(device) for part in batch["hidden"])
        mask = batch["mask"].to(device)
        total += masked_absolute_sum(cell(hidden, mask), target, mask).item()
    return total / store.hidden(exit_).size / store.variance(exit_) ** 0.5


class CellDistillation(LightningModule):
    """Trains a cell, or a supernet of cells, to turn the hidden state at a block's entry into the one at its exit.

    Args:
        variance: Of the targets; the loss is the masked MSE over it, so that blocks are comparable.
        learning_rate: Peak rate of AdamW.
        weight_decay: Of AdamW.
        steps: Optimiser steps in all.
    """

    def __init__(self, variance: float, learning_rate: float, weight_decay: float, steps: int) -> None:
        super().__init__()
        self.variance = variance
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.steps = steps

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """`(batch, seq, teacher_hidden)`, `(batch, seq)` -> `(batch, seq, teacher_hidden)`."""
        return self.model(hidden, mask)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """The loss of one batch, logged under the name of its part of the data."""
        entry, target = batch["hidden"]
        loss = masked_mse(self(entry, batch["mask"]), target, batch["mask"]) / self.variance
        self.log(f"{batch['part']}_loss", loss.detach(), on_step=False, on_epoch=True, batch_size=len(target))
        return loss

    def configure_optimizers(self) -> Any:
        """AdamW with a linear schedule."""
        return adamw_linear(self.model.parameters(), self.learning_rate, self.weight_decay, 0.05, self.steps)


@nni.trace
class DistillationEvaluator(Lightning):
    """NNI evaluator of one block, for one-shot and multi-trial strategies alike.

    A one-shot strategy trains the supernet's weights on one part of train and the architecture on the other. A
    multi-trial strategy trains each sampled cell on all of train; the cell's score on dev is its metric.

    Args:
        train: Features of the training split.
        dev: Features of the split that scores.
        entry: Layer number of the block's first edge.
        exit_: Layer number of its last.
        epochs: Training epochs.
        batch_size: Rows.
        learning_rate: Peak.
        weight_decay: Of AdamW.
        gradient_clip: Norm; a one-shot strategy is given its own.
        architecture_share: Part of train that a one-shot strategy gets for its architecture; 0 for multi-trial.
        max_rows: Rows of train that are used, the same for every epoch; None takes all.
        seed: Of the order, the choice and the split.
        report: Takes the metrics of every epoch.
        on_trained: Takes each cell that a multi-trial strategy had trained, with its score.
    """

    def __init__(
        self,
        *,
        train: FeatureStore,
        dev: FeatureStore,
        entry: int,
        exit_: int,
        epochs: int,
        batch_size: int = 64,
        learning_rate: float = 2e-3,
        weight_decay: float = 0.01,
        gradient_clip: float = 1.0,
        architecture_share: float = 0.0,
        max_rows: int | None = None,
        seed: int = 0,
        report: Report = lambda metrics: None,
        on_trained: OnTrained = lambda cell, score: None,
    ) -> None:
        self.train, self.dev, self.entry, self.exit = train, dev, entry, exit_
        self.epochs, self.batch_size, self.gradient_clip = epochs, batch_size, gradient_clip
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.seed, self.report, self.on_trained = seed, report, on_trained
        self.rows = np.random.default_rng(seed).permutation(len(train))[:max_rows]
        held = round(architecture_share * len(self.rows))
        weights = self._loader(self.rows[held:], "train")
        architecture = self._loader(self.rows[:held], "architecture") if held else None
        steps = epochs * max(len(weights), len(architecture) if architecture is not None else 0)
        super().__init__(self._module(steps), self._trainer(epochs, clip=False), weights, architecture)

    def _loader(self, rows: Any, part: str) -> DataLoader:
        dataset = FeatureDataset(self.train, (self.entry, self.exit), part=part, rows=rows)
        return make_loader(dataset, self.batch_size, shuffle=True, seed=self.seed, kind=DataLoader)

    def _module(self, steps: int) -> CellDistillation:
        return CellDistillation(self.train.variance(self.exit), self.learning_rate, self.weight_decay, steps)

    def _trainer(self, epochs: int, *, clip: bool) -> Trainer:
        # One-shot strategies optimise by hand and clip by themselves; Lightning forbids both at once.
        options = trainer_options(epochs, [ArchitectureReport(self.report)])
        return Trainer(gradient_clip_val=self.gradient_clip if clip else None, **options)

    @torch.no_grad()
    def start_maps(self, cell: nn.Module) -> None:
        """Set a cell's maps into and out of its width to the best linear map from entry to exit.

        See :func:`~nni_bertnas.distill.reduced_rank_regression`. Equal widths have no maps, and nothing is done.
        """
        if not isinstance(cell.into, nn.Linear):
            return
        rows = np.sort(
            np.random.default_rng(self.seed).permutation(self.train.index["num_tokens"])[:_REGRESSION_TOKENS]
        )
        entry, exit_ = (torch.from_numpy(self.train.hidden(edge)[rows]).float() for edge in (self.entry, self.exit))
        maps = reduced_rank_regression(entry, exit_, cell.into.out_features)
        for parameter, value in zip([*cell.into.parameters(), *cell.out.parameters()], maps, strict=True):
            parameter.copy_(value)

    def fit_cell(self, cell: nn.Module, epochs: int) -> float:
        """Train one cell from the weights it has on all rows there are for training, and score it on dev.

        Returns:
            Its block score, see :func:`block_score`.

        Raises:
            CandidateError: The score is not a finite number.
        """
        if epochs:
            loader = self._loader(self.rows, "train")
            # A fresh trainer every time, as Lightning's keep their state.
            Lightning(self._module(epochs * len(loader)), self._trainer(epochs, clip=True), loader).evaluate(cell)
        score = block_score(cell, self.dev, self.entry, self.exit)
        if not np.isfinite(score):
            raise CandidateError(f"its block score is {score}; a lower cell.learning_rate may help")
        return score

    def evaluate(self, model: nn.Module) -> float:
        """Train and score one sampled cell; called by multi-trial strategies."""
        cell = getattr(model, "cell", model)
        self.start_maps(cell)
        try:
            score = self.fit_cell(cell, self.epochs)
        except CandidateError as error:
            _log.warning("%s", error)
            return float("inf")
        self.on_trained(cell, score)
        if nni.get_current_parameter() is not None:
            nni.report_final_result(score)
        return score


class ArchitectureReport(EpochReport):
    """An epoch's metrics; of a one-shot strategy also every choice's probability and the mean entropy in nats."""

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Called by Lightning."""
        if hasattr(pl_module, "export_probs"):
            probabilities: Mapping[str, Mapping[str, float]] = pl_module.export_probs()
            entropies = [entropy(list(choice.values())) for choice in probabilities.values()]
            trainer.callback_metrics["architecture_entropy"] = torch.tensor(entropies).mean()
            for label, choice in probabilities.items():
                for name, value in choice.items():
                    trainer.callback_metrics[f"probability/{label}/{name}"] = torch.tensor(value)
        super().on_train_epoch_end(trainer, pl_module)


def entropy(probabilities: Sequence[float]) -> float:
    """Shannon entropy in nats."""
    return float(-sum(p * np.log(p) for p in probabilities if p > 0))
