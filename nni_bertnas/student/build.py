"""A whole student out of chosen cells: built, and the chain checked."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from nni_bertnas.config import StudentSettings
from nni_bertnas.data.batches import Batch, model_inputs
from nni_bertnas.errors import ConfigError, PhaseError
from nni_bertnas.student.candidates import Candidate
from search_space.cells import Cell
from search_space.student import StudentConfig, StudentForSequenceClassification

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def new_student(
    settings: StudentSettings, teacher: "PreTrainedModel", candidates: Sequence[Candidate], note: dict[str, Any]
) -> StudentForSequenceClassification:
    """A student of an architecture: embeddings from the teacher, everything else fresh.

    Args:
        settings: Its shape.
        teacher: A classifier with BERT's embeddings: BERT, RoBERTa, DistilBERT and their like.
        candidates: The chosen one of every block.
        note: What is saved of the task, see :func:`~nni_bertnas.data.tasks.task_note`.
    """
    bert = teacher.config
    config = StudentConfig(
        cells=[one.shape for one in candidates],
        hidden_size=settings.hidden_size,
        teacher_hidden_size=bert.hidden_size,
        embedding_size=min(settings.embedding_size, bert.hidden_size),
        vocab_size=bert.vocab_size,
        max_position_embeddings=min(note["max_length"], bert.max_position_embeddings),
        type_vocab_size=getattr(bert, "type_vocab_size", 1),  # DistilBERT has none
        layer_norm_eps=getattr(bert, "layer_norm_eps", 1e-12),
        pad_token_id=bert.pad_token_id or 0,
        dropout=settings.dropout,
        id2label=bert.id2label,
        label2id=bert.label2id,
        bertnas_task=note,
    )
    student = StudentForSequenceClassification(config)
    try:
        student.embeddings.copy_from(teacher.base_model.embeddings)
    except AttributeError as error:
        raise ConfigError(f"teacher.model: {type(teacher).__name__} has not BERT's embeddings ({error})") from error
    return student.eval()


@torch.inference_mode()
def check_chain(student: StudentForSequenceClassification, cells: Sequence[Cell], batch: Batch) -> float:
    """Compare the chained student with the cells evaluated one after another, from the student's own embeddings.

    Args:
        student: Holds the cells, not trained since.
        cells: In eval mode.
        batch: With tokens.

    Returns:
        The greatest absolute difference of the last block's exit at unmasked positions, over its standard deviation.

    Raises:
        PhaseError: They differ.
    """
    assert batch.token_type_ids is not None
    hidden = student.embeddings(batch.input_ids, batch.token_type_ids)
    for cell in cells:
        hidden = cell(hidden, batch.mask, batch.token_type_ids.bool() & batch.mask)
    exits = student.eval()(**model_inputs(student, batch), output_hidden_states=True).hidden_states
    chained = cells[-1].out(exits[-1])
    difference = float((chained - hidden)[batch.mask].abs().max() / hidden[batch.mask].std())
    if not difference < 1e-3:
        raise PhaseError(
            f"the chained student differs from its blocks by {difference:.2g} standard deviations; its cells are "
            "damaged: make them anew with bertnas run STUDY --force cell"
        )
    return difference
