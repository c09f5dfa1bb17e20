"""From chosen cells to a trained student: chaining, the check of the chain, end-to-end distillation."""

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nni_bertnas.config import Study
from nni_bertnas.data.tasks import task_spec
from nni_bertnas.errors import ConfigError, PhaseError
from nni_bertnas.store.reader import FeatureStore
from nni_bertnas.training.losses import LOGIT_LOSSES, hidden_loss
from nni_bertnas.training.metrics import Scorer, label_loss, model_inputs
from nni_bertnas.training.row_sparse import RowSparseAdamW, clip_gradients
from nni_bertnas.training.teacher import task_note
from nni_bertnas.training.trainer import adamw_linear, pl
from search_space.cells import Cell
from search_space.student import StudentConfig, StudentForSequenceClassification

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def new_student(
    study: Study, teacher: "PreTrainedModel", candidates: Sequence[Mapping[str, Any]]
) -> StudentForSequenceClassification:
    """A student of an architecture: embeddings from the teacher, everything else fresh.

    Args:
        study: Its `student` and `task.max_length` give the shape.
        teacher: A classifier with BERT's embeddings: BERT, RoBERTa, DistilBERT and their like.
        candidates: The chosen one of every block, its space, depth and architecture.
    """
    bert = teacher.config
    config = StudentConfig(
        cells=[{name: one[name] for name in ("space", "depth", "architecture")} for one in candidates],
        hidden_size=study.student.hidden_size,
        teacher_hidden_size=bert.hidden_size,
        embedding_size=min(study.student.embedding_size, bert.hidden_size),
        vocab_size=bert.vocab_size,
        max_position_embeddings=min(study.task.max_length, bert.max_position_embeddings),
        type_vocab_size=getattr(bert, "type_vocab_size", 1),  # DistilBERT has none
        layer_norm_eps=getattr(bert, "layer_norm_eps", 1e-12),
        pad_token_id=bert.pad_token_id or 0,
        dropout=study.student.dropout,
        id2label=bert.id2label,
        label2id=bert.label2id,
        bertnas_task=task_note(study.task),
    )
    student = StudentForSequenceClassification(config)
    try:
        student.embeddings.copy_from(teacher.base_model.embeddings)
    except AttributeError as error:
        raise ConfigError(f"teacher.model: {type(teacher).__name__} has not BERT's embeddings ({error})") from error
    return student.eval()


@torch.inference_mode()
def check_chain(student: StudentForSequenceClassification, cells: Sequence[Cell], batch: dict[str, Any]) -> float:
    """Compare the chained student with the cells evaluated one after another, from the student's own embeddings.

    Args:
        student: Holds the cells, not trained since.
        cells: In eval mode.
        batch: `input_ids`, `token_type_ids` and `mask`, `(batch, seq)`.

    Returns:
        The greatest absolute difference of the last block's exit at unmasked positions, over its standard deviation.

    Raises:
        PhaseError: They differ.
    """
    hidden = student.embeddings(batch["input_ids"], batch["token_type_ids"])
    for cell in cells:
        hidden = cell(hidden, batch["mask"], batch["token_type_ids"].bool() & batch["mask"])
    exits = student.eval()(**model_inputs(student, batch), output_hidden_states=True).hidden_states
    chained = cells[-1].out(exits[-1])
    difference = float((chained - hidden)[batch["mask"]].abs().max() / hidden[batch["mask"]].std())
    if not difference < 1e-3:
        raise PhaseError(
            f"the chained student differs from its blocks by {difference:.2g} standard deviations; its cells are "
            "damaged: make them anew with bertnas run STUDY --force cell"
        )
    return difference


class StudentDistillation(pl.LightningModule):
    """Trains a whole student against the teacher's logits, its hidden states at the block edges, and the labels.

    The maps from the student's width to the teacher's are needed here alone; they start as the cells' own and are
    not part of the student.

    Args:
        student: The chained student.
        cells: Whose maps out lead to the teacher's width.
        store: Features of train, for the variances.
        study: Its `supernet` and `distill`; its task's metrics are logged on dev as `dev_<metric>`.
        steps: Optimiser steps in all.
    """

    def __init__(
        self, student: StudentForSequenceClassification, cells: Sequence[Cell], store: FeatureStore,
        study: Study, steps: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.student = student
        self.edge_maps = nn.ModuleList(copy.deepcopy(cell.out) for cell in cells)
        self.variances = [store.variance(edge) for edge in store.edges[1:]]
        self.study = study
        self.scorer = Scorer(task_spec(study.task))
        self.steps = steps
        student.embeddings.word.sparse = study.supernet.sparse_embeddings  # its gradient; nothing that is saved

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """The weighted sum of the three losses of one batch."""
        distill = self.study.distill
        output = self.student(**model_inputs(self.student, batch), output_hidden_states=True)
        losses = {
            "logit_loss": LOGIT_LOSSES[distill.logit_loss](output.logits, batch["logits"], distill.temperature),
            "label_loss": label_loss(output.logits, batch["labels"]),
        }
        loss = distill.logit_weight * losses["logit_loss"] + distill.label_weight * losses["label_loss"]
        if batch["hidden"]:  # augmented rows have none
            mapped = [edge_map(x) for edge_map, x in zip(self.edge_maps, output.hidden_states, strict=True)]
            losses["hidden_loss"] = hidden_loss(mapped, batch["hidden"], self.variances, batch["mask"])
            loss = loss + distill.hidden_weight * losses["hidden_loss"]
        logged = {name: value.detach() for name, value in {"train_loss": loss, **losses}.items()}
        self.log_dict(logged, on_step=False, on_epoch=True, batch_size=len(output.logits))
        return loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Collects predictions."""
        self.scorer.add(self.student(**model_inputs(self.student, batch)).logits, batch["labels"])

    def on_validation_epoch_end(self) -> None:
        """Logs the task's metrics over all of dev."""
        self.log_dict({f"dev_{name}": value for name, value in self.scorer.scores().items()})

    def configure_optimizers(self) -> Any:
        """AdamW with a linear schedule; the embeddings have their own rate, or none."""
        config = self.study.supernet
        embeddings = list(self.student.embeddings.parameters())
        own = {id(parameter) for parameter in embeddings}
        groups: list[dict[str, Any]] = [{"params": [p for p in self.parameters() if id(p) not in own]}]
        if not self.study.student.freeze_embeddings:
            groups.append({"params": embeddings, "lr": config.embedding_learning_rate})
        shape = config.learning_rate, config.weight_decay, config.warmup, self.steps
        return adamw_linear(groups, *shape, RowSparseAdamW if config.sparse_embeddings else torch.optim.AdamW)

    def configure_gradient_clipping(self, optimizer: Any, gradient_clip_val: Any = None, **_: Any) -> None:
        """Called by Lightning, whose own clipping takes no sparse gradients."""
        clip_gradients(self.parameters(), gradient_clip_val)
