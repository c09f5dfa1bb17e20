"""A whole student out of chosen cells: built, and the chain checked."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch

from nni_bertnas.config import StudentSettings
from nni_bertnas.data.batches import Batch, model_inputs
from nni_bertnas.data.tasks import TaskSpec
from nni_bertnas.errors import PhaseError
from nni_bertnas.student.candidates import Candidate
from nni_bertnas.student.start import Start
from search_space.cells import Cell
from search_space.embeddings import Embeddings
from search_space.heads import HEADS, split_pairs
from search_space.student import StudentConfig, StudentForSequenceClassification

_SMOOTH = 1e-3
_ENCODINGS: tuple[Literal["joint", "separate"], ...] = ("joint", "separate")


def resolve_shape(settings: StudentSettings, spec: TaskSpec) -> StudentSettings:
    """The settings with what was measured best for the task in place of `auto`, and of `search`, which starts there."""
    head = settings.head if settings.head in HEADS else "align" if spec.pairs else "pool"
    if settings.encoding in _ENCODINGS:
        return replace(settings, head=head)
    return replace(settings, head=head, encoding="separate" if spec.symmetric and HEADS[head].sides == 2 else "joint")


def list_shapes(settings: StudentSettings, spec: TaskSpec) -> list[StudentSettings]:
    """The shapes that a search of head and encoding has to choose from, the one it starts from first; else one."""
    start = resolve_shape(settings, spec)
    heads = [name for name, kind in HEADS.items() if kind.sides == 1 or spec.pairs]
    tried = [
        resolve_shape(
            replace(
                settings,
                head=head if settings.head == "search" else settings.head,
                encoding=encoding if settings.encoding == "search" and spec.pairs else settings.encoding,
            ),
            spec,
        )
        for head in heads
        for encoding in _ENCODINGS
    ]
    return list(
        dict.fromkeys([start, *(one for one in tried if HEADS[one.head].sides == 2 or one.encoding == "joint")])
    )


def new_student(
    settings: StudentSettings, start: Start, candidates: Sequence[Candidate]
) -> StudentForSequenceClassification:
    """A student of an architecture: embeddings from the teacher, everything else fresh.

    Args:
        settings: Its shape, `auto` resolved.
        start: What it starts from.
        candidates: The chosen one of every block; none: the word pieces' vectors alone lead into the head.
    """
    bert = start.teacher.config
    config = StudentConfig(
        cells=[one.shape for one in candidates],
        hidden_size=settings.hidden_size,
        teacher_hidden_size=bert.hidden_size,
        embedding_size=min(settings.embedding_size, bert.hidden_size),
        vocab_size=bert.vocab_size,
        max_position_embeddings=start.places,
        type_vocab_size=len(start.embeddings.types),
        layer_norm_eps=getattr(bert, "layer_norm_eps", 1e-12),
        pad_token_id=bert.pad_token_id or 0,
        sep_token_id=start.sep_token_id,
        dropout=settings.dropout,
        head=settings.head,
        encoding=settings.encoding,
        symmetric=start.spec.symmetric,
        token_weights=settings.token_weights,
        static_path=settings.static_path,
        problem_type=start.spec.problem_type,
        id2label=bert.id2label,
        label2id=bert.label2id,
        bertnas_task=dict(start.note),
    )
    student = StudentForSequenceClassification(config)
    kind = settings.embedding_start if settings.embedding_start != "auto" else "input" if candidates else "output"
    pieces = None if kind == "input" or start.pieces is None else torch.from_numpy(start.pieces).float()
    assert isinstance(student.embeddings, Embeddings)
    student.embeddings.start_from(**vars(start.embeddings), pieces=pieces)
    if student.token_weight is not None and start.counts is not None:
        student.token_weight.weight.data[:, 0] = torch.from_numpy(inverse_frequency(start.counts))
    return student.eval()


def inverse_frequency(counts: np.ndarray) -> np.ndarray:
    """The logarithm of every word piece's smooth inverse frequency, `(vocab,)`.

    a / (a + p) with the piece's probability p (Arora et al., "A simple but tough-to-beat baseline for sentence
    embeddings", ICLR 2017, equation 1).
    """
    probability = counts / max(1, counts.sum())
    weights: np.ndarray = np.log(_SMOOTH / (_SMOOTH + probability)).astype(np.float32)
    return weights


@torch.inference_mode()
def check_chain(student: StudentForSequenceClassification, cells: Sequence[Cell], batch: Batch) -> float:
    """Compare the chained student with the cells evaluated one after another, from the student's own embeddings.

    Args:
        student: Holds the cells, not trained since.
        cells: In eval mode.
        batch: With tokens.

    Returns:
        The greatest absolute difference of the last block's exit at unmasked positions, over its standard deviation; 0
        where the student has no cells.

    Raises:
        PhaseError: They differ.
    """
    if not student.cells:
        return 0.0
    ids, types, mask = batch.input_ids, batch.token_type_ids, batch.mask
    assert ids is not None and types is not None
    second, mask = (types == 1) & mask, (types < 2) & mask
    separate = student.config.encoding == "separate"
    if separate:
        ids, mask = split_pairs(mask, second, ids)
    inputs = model_inputs(student, batch)
    _, hidden = student.embeddings(ids, None if separate else inputs.get("token_type_ids"), first=int(separate))
    for cell in cells:
        hidden = cell(hidden, mask, None if separate else second)
    exits = student.eval()(**inputs, output_hidden_states=True).hidden_states
    chained = cells[-1].out(exits[-1])
    difference = float((chained - hidden)[mask].abs().max() / hidden[mask].std())
    if not difference < 1e-3:
        raise PhaseError(
            f"the chained student differs from its blocks by {difference:.2g} standard deviations; its cells are "
            "damaged: make them anew with bertnas run STUDY --force cell"
        )
    return difference
