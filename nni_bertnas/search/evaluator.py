"""The distillation evaluator: what NNI's strategies call to train and score a cell."""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import nni
import numpy as np
from nni.nas.evaluator import Evaluator
from nni.nas.evaluator.pytorch import Lightning, LightningModule
from torch import Tensor, nn

from nni_bertnas.config import TrainingSettings
from nni_bertnas.data.batches import Batch, ReadAhead
from nni_bertnas.errors import CandidateError
from nni_bertnas.machine import mixed_precision
from nni_bertnas.search.one_path import take_one_path
from nni_bertnas.search.penalties import Penalty
from nni_bertnas.store.reader import FeatureStore
from nni_bertnas.training import resume
from nni_bertnas.training.cells import CellLoss, CellTrainer
from nni_bertnas.training.distributed import RankTrainer
from nni_bertnas.training.probes import Probes
from nni_bertnas.training.relations import Attention
from nni_bertnas.training.trainer import EpochReport, Report, trainer_options

_log = logging.getLogger(__name__)
_Loader, _Trainer = nni.trace(ReadAhead), nni.trace(RankTrainer)  # NNI takes no other
FAILED = -1e9  # the metric of a cell that diverged; NNI's channel takes no infinity


class SupernetDistillation(LightningModule):
    """Trains a supernet of cells to turn the hidden state at each block's entry into the one at its exit.

    Args:
        loss: Of the cells.
        steps: Optimiser steps in all.
        penalties: Added to the loss of the batches of the part `architecture`, by the names they are logged under.
    """

    def __init__(self, loss: CellLoss, steps: int, penalties: Mapping[str, Penalty]) -> None:
        super().__init__()
        self.loss = loss
        self.steps = steps
        self.penalties = penalties

    def forward(self, hidden: Sequence[Tensor], mask: Tensor, second: Tensor | None = None) -> list[Tensor]:
        """One hidden state per block, each `(batch, seq, teacher_hidden)`, to as many; masks `(batch, seq)`."""
        outputs: list[Tensor] = self.model(hidden, mask, second)
        return outputs

    def on_fit_start(self) -> None:
        """Puts parameters into an order that all processes have, as optimisers' states go by it; NNI's is a set's."""
        order = {id(parameter): number for number, parameter in enumerate(self.parameters())}
        for optimizer in self.trainer.optimizers:
            for group in optimizer.param_groups:
                group["params"].sort(key=lambda one: order.get(id(one), len(order)))

    def _loss(self, batch: Batch) -> Tensor:
        take_one_path(self.model)
        return self.loss(self.model.cells, batch, lambda: self(batch.hidden[:-1], batch.mask, batch.second))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of one batch, logged under the name of its part of the data."""
        loss = self._loss(batch)
        shown = {"on_step": False, "on_epoch": True, "batch_size": batch.num_rows, "sync_dist": True}
        self.log(f"{batch.part}_loss", loss.detach(), **shown)
        if batch.part == "architecture":
            for name, penalty in self.penalties.items():
                term = penalty(self.model)
                self.log(name, term.detach(), **shown)
                loss = loss + term
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """The reward of ENAS: minus the loss."""
        self.log("reward", -self._loss(batch).detach(), on_step=True, on_epoch=False, sync_dist=True)

    def configure_optimizers(self) -> Any:
        """The optimizer with a linear schedule."""
        return self.loss.optimizer(self.model.parameters(), self.steps)


@nni.trace
class DistillationEvaluator(Lightning):
    """NNI evaluator of one block, or of blocks that share an architecture, for one-shot and multi-trial strategies.

    A one-shot strategy trains the supernet's weights on one part of train and the architecture on the other. A
    multi-trial strategy trains each sampled cell on all of train; minus its mean score on dev is its metric.

    Args:
        train: Features of the training split.
        dev: Features of the split that scores.
        edges: Layer numbers of the blocks' edges, one more than there are blocks.
        settings: Of the training; its gradient clip is for multi-trial strategies, DARTS and its kin have their own.
        probes: Of the teacher's edges, where a loss asks for them.
        attention: Of the teacher behind every block's entry, likewise.
        precision: Of the training, as in :func:`~nni_bertnas.machine.mixed_precision`.
        seed: Of the order, the choice and the split.
        report: Takes the metrics of every epoch.
        architecture_share: Part of train that a one-shot strategy gets for its architecture; 0 for all others.
        penalties: See :class:`SupernetDistillation`.
        callbacks: Of the search's Lightning trainer, besides the report.
    """

    def __init__(
        self,
        *,
        train: FeatureStore,
        dev: FeatureStore,
        edges: Sequence[int],
        settings: TrainingSettings | None = None,
        probes: Probes | None = None,
        attention: Attention | None = None,
        precision: str = "float32",
        seed: int = 0,
        report: Report = lambda metrics: None,
        architecture_share: float = 0.0,
        penalties: Mapping[str, Penalty] | None = None,
        callbacks: Sequence[Any] = (),
    ) -> None:
        settings = settings or TrainingSettings()
        self.cells = CellTrainer(
            train=train,
            dev=dev,
            edges=edges,
            settings=settings,
            probes=probes,
            attention=attention,
            precision=precision,
            seed=seed,
            report=report,
        )
        rows = self.cells.rows
        held = round(architecture_share * len(rows))
        weights = self.cells.loader(rows[held:], kind=_Loader)
        # NNI asks for a second loader even where nothing reads it.
        architecture = self.cells.loader(rows[:held] if held else rows, "architecture", kind=_Loader)
        steps = settings.epochs * max(len(weights), len(architecture) if held else 0)
        options = trainer_options(settings.epochs, [*callbacks, EpochReport(report)], mixed_precision(precision))
        # Strategies that optimise by hand clip by themselves; Lightning forbids both at once.
        clip = None if held else settings.gradient_clip
        trainer = _Trainer(gradient_clip_val=clip, limit_val_batches=0, **options)
        samplers = [weights.batch_sampler, architecture.batch_sampler]  # NNI joins the loaders
        trainer.fit = partial(resume.train, trainer, samplers=samplers)
        super().__init__(SupernetDistillation(self.cells.loss, steps, penalties or {}), trainer, weights, architecture)

    def evaluate(self, model: Any) -> float:
        """Train and score one sampled cell; called by multi-trial strategies.

        Returns:
            Minus the mean block score, as NNI's evolution looks for what is high.
        """
        cells = list(model.cells)
        self.cells.start_maps(cells)
        try:
            metric = -float(np.mean(self.cells.fit_cells(cells, self.cells.settings.epochs)))
        except CandidateError as error:
            _log.warning("%s", error)
            metric = FAILED
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
