"""End-to-end distillation of a whole student."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from nni_bertnas import ranks
from nni_bertnas.config import DistillSettings, SupernetSettings
from nni_bertnas.data.batches import Batch, model_inputs
from nni_bertnas.data.tasks import TaskSpec
from nni_bertnas.training.losses import Balance, Output, Scale, weighted_losses
from nni_bertnas.training.metrics import Scorer
from nni_bertnas.training.optimizers import RowSparseAdamW, adamw_linear, clip_gradients
from nni_bertnas.training.probes import Probes
from nni_bertnas.training.relations import Attention, captured
from nni_bertnas.training.trainer import pl
from search_space.cells import Cell
from search_space.student import StudentForSequenceClassification

_AVERAGED_EVERY = 8  # steps, as a mean over a whole word matrix takes as long as a step


class StudentDistillation(pl.LightningModule):
    """Trains a whole student against the teacher's logits, vectors, hidden states at the block edges, and the labels.

    The maps from the student's width to the teacher's are needed here alone and are not part of the student; those of
    hidden states start as the cells' own.

    Args:
        student: The chained student.
        cells: Whose maps out lead to the teacher's width.
        variances: Of the teacher's hidden states at the exit of every block.
        vector_map: Leads from the width of the student's vectors of texts to the teacher's.
        distill: The losses and their weights.
        settings: Of the training.
        spec: Of the task, whose metrics are logged on dev as `dev_<metric>`.
        balance: Of the labels.
        probes: Of the exit of every block, where a loss asks for them.
        attention: Of the teacher behind the entry of every block, likewise.
        steps: Optimiser steps in all.
        freeze_embeddings: Whether they are not trained.
    """

    def __init__(
        self,
        student: StudentForSequenceClassification,
        cells: Sequence[Cell],
        variances: Sequence[float],
        vector_map: nn.Module,
        *,
        distill: DistillSettings,
        settings: SupernetSettings,
        spec: TaskSpec,
        balance: Balance = Balance(),  # noqa: B008 (frozen)
        probes: Probes | None = None,
        attention: Attention | None = None,
        steps: int,
        freeze_embeddings: bool = False,
    ) -> None:
        super().__init__()
        self.student = student
        self.edge_maps = nn.ModuleList(copy.deepcopy(cell.out) for cell in cells)
        self.vector_map = vector_map
        self.weights = {name: weight for name, weight in distill.losses.items() if weight}
        self.scale = Scale(
            variances=variances, temperature=distill.temperature, balance=balance, probes=probes, attention=attention
        )
        self.settings = settings
        self.scorer = Scorer(spec, noise=True)
        self._squares: list[Tensor] = []
        self.steps = steps
        self.freeze_embeddings = freeze_embeddings
        self._average: tuple[AveragedModel, ...] = ()  # in a tuple, lest it counts as a part of this module
        self._saved_average: dict[str, Any] = {}
        for table in student.tables:
            table.sparse = settings.sparse_embeddings  # its gradient; nothing that is saved

    def __getstate__(self) -> dict[str, Any]:
        """For other ranks; every training begins a mean of its own."""
        state: dict[str, Any] = super().__getstate__()
        return state | {"_average": ()}

    @property
    def judged(self) -> nn.Module:
        """What dev judges: the mean of the student's weights where the study asks for it, else the student."""
        return self._average[0].module if self._average else self.student

    def on_fit_start(self) -> None:
        """Called by Lightning, the student on its device."""
        if self.settings.averaging:
            forgotten = 1 / max(1.0, self.settings.averaging * self.steps / _AVERAGED_EVERY)
            mean = AveragedModel(self.student, multi_avg_fn=get_ema_multi_avg_fn(1 - forgotten))
            self._average = (mean.eval(),)
            if self._saved_average:
                self._average[0].load_state_dict(self._saved_average)
                self._saved_average = {}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Called by Lightning."""
        checkpoint["average"] = self._average[0].state_dict() if self._average else {}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Called by Lightning, before the training begins."""
        self._saved_average = checkpoint["average"]

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Called by Lightning."""
        if self._average and self.global_step % _AVERAGED_EVERY == 0:
            self._average[0].update_parameters(self.student)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        """The weighted sum of the losses of one batch; None where it has targets for none of them."""
        with captured(list(self.student.cells)) as attention:
            output = self.student(**model_inputs(self.student, batch), output_hidden_states=True)
        exits = output.hidden_states if batch.hidden else ()  # augmented rows have no targets for them
        mapped = [edge_map(x) for edge_map, x in zip(self.edge_maps, exits, strict=False)]
        vectors = None if batch.vectors is None else self.vector_map(output.vectors)
        made = Output(logits=output.logits, vectors=vectors, hidden=mapped, attention=attention)
        if self.scale.attention is not None and batch.hidden:  # the first block's entry is not read
            batch = replace(batch, entries=[None, *batch.hidden[:-1]])
        loss, parts = weighted_losses(self.weights, made, batch, self.scale)
        if not parts:
            return None
        logged = {"train_loss": loss.detach(), **{f"{name}_loss": value.detach() for name, value in parts.items()}}
        self.log_dict(logged, on_step=False, on_epoch=True, batch_size=batch.num_rows, sync_dist=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Collects predictions, and how far they are from the teacher's."""
        if batch.spare:
            return
        logits = self.judged(**model_inputs(self.student, batch)).logits
        self.scorer.add(logits, batch.labels)
        squares = (logits - batch.logits).square().double() if batch.logits is not None else logits.new_zeros(0)
        self._squares.append(squares[~squares.isnan()].cpu())

    def on_validation_epoch_end(self) -> None:
        """Logs the task's metrics over all of dev, and the mean squared error against the teacher's logits."""
        scores = {**self.scorer.scores(), "logit_mse": float(torch.cat(ranks.gathered(self._squares)).mean())}
        self._squares.clear()
        self.log_dict({f"dev_{name}": value for name, value in scores.items()})

    def begin_last(self, steps: int) -> None:
        """Go on with another optimiser for so many steps, at half the rates."""
        rates = {name: getattr(self.settings, name) / 2 for name in ("learning_rate", "embedding_learning_rate")}
        self.settings, self.steps = replace(self.settings, **rates), steps

    def configure_optimizers(self) -> Any:
        """AdamW with a linear schedule; the embeddings have their own rate, or none."""
        settings = self.settings
        parts = self.student.embeddings, *self.student.tables
        own = {id(parameter): parameter for part in parts for parameter in part.parameters()}
        groups: list[dict[str, Any]] = [{"params": [p for p in self.parameters() if id(p) not in own]}]
        if not self.freeze_embeddings:
            groups.append({"params": list(own.values()), "lr": settings.embedding_learning_rate})
        shape = settings.learning_rate, settings.weight_decay, settings.warmup, self.steps
        return adamw_linear(groups, *shape, RowSparseAdamW if settings.sparse_embeddings else torch.optim.AdamW)

    def configure_gradient_clipping(self, optimizer: Any, gradient_clip_val: Any = None, **_: Any) -> None:
        """Called by Lightning, whose own clipping takes no sparse gradients."""
        clip_gradients(self.parameters(), gradient_clip_val)
