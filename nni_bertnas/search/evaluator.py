"""The distillation evaluator: what NNI's strategies call to train and score a cell."""

import itertools
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import nni
import numpy as np
import torch
from nni.nas.evaluator import Evaluator
from nni.nas.evaluator.pytorch import Lightning, LightningModule, Trainer
from nni.nas.strategy.base import Strategy
from torch import Tensor, nn

from nni_bertnas.data.batches import ReadAhead, make_loader
from nni_bertnas.errors import CandidateError
from nni_bertnas.store.reader import FeatureDataset, FeatureStore
from nni_bertnas.training.losses import masked_absolute_sum, masked_mse, reduced_rank_regression
from nni_bertnas.training.muon import MuonAdamW
from nni_bertnas.training.trainer import EpochReport, Report, adamw_linear, mixed_precision, trainer_options

_log = logging.getLogger(__name__)
_Loader = nni.trace(ReadAhead)  # NNI takes no other
_REGRESSION_TOKENS = 50_000  # enough for a few hundred units
_FAILED = -1e9  # the metric of a cell that diverged; NNI's channel takes no infinity
OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {"adamw": torch.optim.AdamW, "muon": MuonAdamW}
OnTrained = Callable[[list[nn.Module], list[float]], None]  # takes trained cells and their block scores
Penalty = Callable[[nn.Module], Tensor]


class Cells(nn.ModuleList):
    """Cells of consecutive blocks that are trained and scored together."""

    def forward(self, hidden: Sequence[Tensor], mask: Tensor, second: Tensor | None = None) -> list[Tensor]:
        """One hidden state per block, each `(batch, seq, teacher_hidden)`, to as many; masks `(batch, seq)`."""
        return [cell(x, mask, second) for cell, x in zip(self, hidden, strict=True)]


def score_batches(store: FeatureStore, edges: Sequence[int], rows: Any = None) -> Iterable[dict[str, Any]]:
    """The batches on which cells are scored: of all rows of a split, or of some."""
    loader: Iterable[dict[str, Any]] = make_loader(FeatureDataset(store, edges, rows=rows), 128, shuffle=False)
    return loader


@torch.inference_mode()
def block_scores(
    cells: Sequence[nn.Module],
    store: FeatureStore,
    edges: Sequence[int],
    batches: Iterable[dict[str, Any]] | None = None,
) -> list[float]:
    """Relative L1 of every cell on one split: mean|S - T| / std(T), lower is better.

    DNA, arXiv 1911.13053; comparable between blocks. The cells are left in eval mode.

    Args:
        cells: One per pair of neighbouring edges.
        store: The split.
        edges: Layer numbers; cell b leads from the b-th to the next.
        batches: Of the split; None takes all of it.
    """
    for cell in cells:
        cell.eval()
    device = next((parameter.device for cell in cells for parameter in cell.parameters()), torch.device("cpu"))
    totals, entries = [0.0] * len(cells), 0
    for batch in score_batches(store, edges) if batches is None else batches:
        hidden = [part.to(device) for part in batch["hidden"]]
        mask, second = batch["mask"].to(device), batch.get("second")
        entries += int(mask.sum()) * hidden[0].shape[-1]
        for number, cell in enumerate(cells):
            output = cell(hidden[number], mask, None if second is None else second.to(device))
            totals[number] += masked_absolute_sum(output, hidden[number + 1], mask).item()
    variances = [store.variance(edge) for edge in edges[1:]]
    return [total / entries / variance**0.5 for total, variance in zip(totals, variances, strict=True)]


class CellDistillation(LightningModule):
    """Trains cells, or a supernet of cells, to turn the hidden state at each block's entry into the one at its exit.

    Args:
        variances: Of every block's targets; the loss is the mean over blocks of the masked MSE over it, so that blocks
            are comparable.
        learning_rate: Peak rate.
        weight_decay: Decoupled.
        steps: Optimiser steps in all.
        optimizer: A key of OPTIMIZERS.
        penalty: Added to the loss of the batches of the part `architecture`; takes the supernet.
    """

    def __init__(
        self,
        variances: Sequence[float],
        learning_rate: float,
        weight_decay: float,
        steps: int,
        optimizer: str = "adamw",
        penalty: Penalty | None = None,
    ) -> None:
        super().__init__()
        self.optimizer = optimizer
        self.variances = list(variances)
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.steps = steps
        self.penalty = penalty

    def forward(self, hidden: Sequence[Tensor], mask: Tensor, second: Tensor | None = None) -> list[Tensor]:
        """One hidden state per block, each `(batch, seq, teacher_hidden)`, to as many; masks `(batch, seq)`."""
        return self.model(hidden, mask, second)

    def _loss(self, batch: dict[str, Any]) -> Tensor:
        hidden, mask = batch["hidden"], batch["mask"]
        outputs = self(hidden[:-1], mask, batch.get("second"))
        losses = [
            masked_mse(output, target, mask) / variance
            for output, target, variance in zip(outputs, hidden[1:], self.variances, strict=True)
        ]
        return torch.stack(losses).mean()

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """The loss of one batch, logged under the name of its part of the data."""
        loss = self._loss(batch)
        name, size = batch["part"], len(batch["mask"])
        self.log(f"{name}_loss", loss.detach(), on_step=False, on_epoch=True, batch_size=size)
        if self.penalty is not None and name == "architecture":
            cost = self.penalty(self.model)
            self.log("expected_cost", cost.detach(), on_step=False, on_epoch=True, batch_size=size)
            loss = loss + cost
        return loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """The reward of ENAS: minus the loss."""
        self.log("reward", -self._loss(batch).detach(), on_step=True, on_epoch=False, batch_size=len(batch["mask"]))

    def configure_optimizers(self) -> Any:
        """The optimizer with a linear schedule."""
        shape = self.learning_rate, self.weight_decay, 0.05, self.steps
        return adamw_linear(self.model.parameters(), *shape, OPTIMIZERS[self.optimizer])

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Called by Lightning, whose look through a batch takes time even where it finds nothing to move."""
        return batch if device.type == "cpu" else super().transfer_batch_to_device(batch, device, dataloader_idx)


class CandidateDistillation(CellDistillation):
    """Trains candidates of one block beside each other, each as if it were alone: they share the batches only."""

    def _loss(self, batch: dict[str, Any]) -> Tensor:
        (entry, target), mask = batch["hidden"], batch["mask"]
        outputs = self([entry] * len(self.model), mask, batch.get("second"))
        return torch.stack([masked_mse(output, target, mask) / self.variances[0] for output in outputs]).sum()

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        """Called by Lightning: every candidate has a norm of its own."""
        for cell in self.model:
            torch.nn.utils.clip_grad_norm_(cell.parameters(), gradient_clip_val)


@nni.trace
class DistillationEvaluator(Lightning):
    """NNI evaluator of one block, or of blocks that share an architecture, for one-shot and multi-trial strategies.

    A one-shot strategy trains the supernet's weights on one part of train and the architecture on the other. A
    multi-trial strategy trains each sampled cell on all of train; minus its mean score on dev is its metric.

    Args:
        train: Features of the training split.
        dev: Features of the split that scores.
        edges: Layer numbers of the blocks' edges, one more than there are blocks.
        epochs: Training epochs.
        batch_size: Rows.
        learning_rate: Peak.
        weight_decay: Decoupled.
        optimizer: A key of OPTIMIZERS.
        gradient_clip: Norm; DARTS and its kin are given their own.
        architecture_share: Part of train that a one-shot strategy gets for its architecture; 0 for all others.
        max_rows: Rows of train that are used, the same for every epoch; None takes all.
        precision: Of the training, as in :func:`~nni_bertnas.training.trainer.mixed_precision`.
        seed: Of the order, the choice and the split.
        report: Takes the metrics of every epoch.
        on_trained: Takes the cells that a multi-trial strategy had trained, with their scores.
        penalty: See :class:`CellDistillation`.
        callbacks: Of the search's Lightning trainer, besides the report.
    """

    def __init__(
        self,
        *,
        train: FeatureStore,
        dev: FeatureStore,
        edges: Sequence[int],
        epochs: int,
        batch_size: int = 64,
        learning_rate: float = 2e-3,
        weight_decay: float = 0.01,
        optimizer: str = "adamw",
        gradient_clip: float = 1.0,
        architecture_share: float = 0.0,
        max_rows: int | None = None,
        precision: str = "float32",
        seed: int = 0,
        report: Report = lambda metrics: None,
        on_trained: OnTrained = lambda cells, scores: None,
        penalty: Penalty | None = None,
        callbacks: Sequence[Any] = (),
    ) -> None:
        self.train, self.dev, self.edges = train, dev, tuple(edges)
        self.epochs, self.batch_size, self.gradient_clip = epochs, batch_size, gradient_clip
        self.learning_rate, self.weight_decay, self.optimizer = learning_rate, weight_decay, optimizer
        self.precision, self.seed, self.report, self.on_trained = precision, seed, report, on_trained
        self.rows = np.random.default_rng(seed).permutation(train.rows)[:max_rows]
        held = round(architecture_share * len(self.rows))
        weights = self._loader(self.rows[held:], "train")
        # NNI asks for a second loader even where nothing reads it.
        architecture = self._loader(self.rows[:held] if held else self.rows, "architecture")
        steps = epochs * max(len(weights), len(architecture) if held else 0)
        trainer = self._trainer(epochs, clip=not held, callbacks=callbacks)
        super().__init__(self._module(steps, penalty), trainer, weights, architecture)

    def _loader(self, rows: Any, part: str) -> Any:
        dataset = FeatureDataset(self.train, self.edges, part=part, rows=rows)
        return make_loader(dataset, self.batch_size, shuffle=True, seed=self.seed, kind=_Loader)

    def _module(
        self, steps: int, penalty: Penalty | None = None, kind: type[CellDistillation] = CellDistillation
    ) -> CellDistillation:
        variances = [self.train.variance(edge) for edge in self.edges[1:]]
        return kind(variances, self.learning_rate, self.weight_decay, steps, self.optimizer, penalty)

    def _trainer(self, epochs: int, *, clip: bool, callbacks: Sequence[Any] = (), wide: bool = False) -> Trainer:
        # Strategies that optimise by hand clip by themselves; Lightning forbids both at once.
        precision = mixed_precision(self.precision, wide)
        options = trainer_options(epochs, [*callbacks, EpochReport(self.report)], precision)
        return Trainer(gradient_clip_val=self.gradient_clip if clip else None, limit_val_batches=0, **options)

    @torch.no_grad()
    def start_maps(self, cells: Sequence[nn.Module]) -> None:
        """Set the maps into and out of each cell's width to the best linear map from its entry to its exit.

        See :func:`~nni_bertnas.training.losses.reduced_rank_regression`. Of equal widths nothing is done.
        """
        for cell, (entry, exit_) in zip(cells, itertools.pairwise(self.edges), strict=True):
            if not isinstance(cell.into, nn.Linear):
                continue
            if (entry, cell.into.out_features) not in self._maps:
                x, y = self.train.sample((entry, exit_), _REGRESSION_TOKENS, self.seed)
                self._maps[entry, cell.into.out_features] = reduced_rank_regression(x, y, cell.into.out_features)
            maps = self._maps[entry, cell.into.out_features]
            for parameter, value in zip([*cell.into.parameters(), *cell.out.parameters()], maps, strict=True):
                parameter.copy_(value)

    @cached_property
    def _maps(self) -> dict[tuple[int, int], tuple[Tensor, ...]]:
        return {}  # a search starts many cells from the same

    def score(self, cells: Sequence[nn.Module], batches: Iterable[dict[str, Any]] | None = None) -> list[float]:
        """Block scores on dev as they are, see :func:`block_scores`.

        Raises:
            CandidateError: One is not a finite number.
        """
        scores = block_scores(cells, self.dev, self.edges, batches)
        if not np.isfinite(scores).all():
            raise CandidateError(f"its block score is {scores}; a lower cell.learning_rate may help")
        return scores

    def fit_cells(self, cells: Sequence[nn.Module], epochs: int, share: float = 1.0) -> list[float]:
        """Train cells from the weights they have on the rows there are for training, and score them on dev.

        Args:
            cells: One per block.
            epochs: Of training.
            share: Of the rows; always the same ones.

        Returns:
            Their block scores, see :func:`block_scores`.

        Raises:
            CandidateError: A score is not a finite number.
        """
        if epochs:
            self._fit(cells, epochs, self.rows[: math.ceil(share * len(self.rows))], CellDistillation)
        return self.score(cells)

    def fit_candidates(self, cells: Sequence[nn.Module], epochs: int) -> None:
        """Train candidates of one block on the same batches, from the weights they have; none touches another.

        Args:
            cells: Candidates.
            epochs: Of training.
        """
        self._fit(cells, epochs, self.rows, CandidateDistillation)

    def _fit(self, cells: Sequence[nn.Module], epochs: int, rows: Any, kind: type[CellDistillation]) -> None:
        loader = self._loader(rows, "train")
        # A fresh trainer every time, as Lightning's keep their state.
        trainer = self._trainer(epochs, clip=True, wide=kind is CandidateDistillation)
        Lightning(self._module(epochs * len(loader), kind=kind), trainer, loader).evaluate(Cells(cells))

    def evaluate(self, model: nn.Module) -> float:
        """Train and score one sampled cell; called by multi-trial strategies.

        Returns:
            Minus the mean block score, as NNI's evolution looks for what is high.
        """
        cells = list(model.cells)
        self.start_maps(cells)
        try:
            scores = self.fit_cells(cells, self.epochs)
        except CandidateError as error:
            _log.warning("%s", error)
            metric = _FAILED
        else:
            self.on_trained(cells, scores)
            metric = -float(np.mean(scores))
        if nni.get_current_parameter() is not None:
            nni.report_final_result(metric)
        return metric


@nni.trace
class SampleEvaluator(Evaluator):
    """NNI evaluator that asks a function for the metric of each sample.

    Args:
        metric: Takes a sample; high is good.
    """

    def __init__(self, metric: Callable[[Mapping[str, Any]], float]) -> None:
        self.metric = metric

    def evaluate(self, model: nn.Module) -> float:
        """Called by NNI's engine."""
        metric = self.metric(dict(nni.get_current_parameter().sample))
        nni.report_final_result(metric)
        return metric


class Proposals(Strategy):
    """NNI strategy that submits the samples of an iterator one by one and tells each its metric.

    Args:
        proposals: Samples, each with what takes its metric.
    """

    def __init__(self, proposals: Iterable[tuple[Mapping[str, Any], Callable[[float], None]]]) -> None:
        super().__init__()
        self.proposals = iter(proposals)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: a search that is interrupted starts anew."""
        return {}

    def _run(self) -> None:
        for sample, tell in self.proposals:
            if not self.wait_for_resource():
                return
            model = self.model_space.freeze(dict(sample))
            self.engine.submit_models(model)
            if model.metric is not None:
                tell(model.metric)
