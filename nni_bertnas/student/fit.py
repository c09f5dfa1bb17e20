"""Does the teacher fit: tried on made-up rows, up to a student's forward pass, before any time is spent on it."""

from typing import Any

import torch

from nni_bertnas.config import StudentSettings
from nni_bertnas.data.batches import Batch, model_inputs
from nni_bertnas.errors import ConfigError
from nni_bertnas.student.build import new_student
from nni_bertnas.student.candidates import Candidate
from nni_bertnas.student.start import Start, places

FAMILIES = "BERT, RoBERTa, XLM-R, DistilBERT, MPNet, ELECTRA, ALBERT, DeBERTa and ModernBERT"
_TRIED = Candidate(space="layers", depth=1, architecture={"layer_0": "convolution_3"})
_FEW = 8  # word pieces


@torch.inference_mode()
def check_teacher(settings: StudentSettings, start: Start) -> None:
    """Whether students can learn from a teacher.

    Args:
        settings: Shape of the students.
        start: What they start from.

    Raises:
        ConfigError: It is a decoder, has no hidden states at its layers' edges, too few positions, or embeddings that a
            student cannot start from.
    """
    model, length = start.teacher.eval(), int(start.note["max_length"])
    what, config = f"teacher.model: {type(model).__name__}", model.config
    if getattr(config, "is_encoder_decoder", False):
        raise ConfigError(f"{what} is an encoder and a decoder; take an encoder, such as {FAMILIES}")
    if length > (room := places(model)):
        raise ConfigError(f"task.max_length must be at most {room}, the positions of this teacher, got {length}")
    states = _states(model, _row(config, min(length, _FEW)), what)
    if len(states) != config.num_hidden_layers + 1 or {state.shape for state in states} != {
        torch.Size((1, min(length, _FEW), config.hidden_size))
    }:
        raise ConfigError(
            f"{what} does not give one hidden state per word piece and layer; take an encoder, such as {FAMILIES}"
        )
    other = _row(config, min(length, _FEW))
    assert other.input_ids is not None
    other.input_ids[0, -1] += 1
    if torch.equal(_states(model, other, what)[-1][0, 0], states[-1][0, 0]):
        raise ConfigError(f"{what} reads from left to right alone, as decoders do; take an encoder, such as {FAMILIES}")
    try:
        with torch.random.fork_rng():  # the teacher's training is not to depend on this
            student = new_student(settings, start, [_TRIED])
        row = _row(config, student.config.max_position_embeddings)
        logits = student(**model_inputs(student, row)).logits, model(**model_inputs(model, row)).logits
    except ConfigError:
        raise
    except Exception as error:  # of whatever code a model brings
        raise ConfigError(
            f"{what}: no student can start from it ({type(error).__name__}: {error}); take {FAMILIES}"
        ) from error
    if logits[0].shape != logits[1].shape:
        raise ConfigError(f"{what} gives {logits[1].shape[1]} outputs a row, its labels are {logits[0].shape[1]}")


def _row(config: Any, length: int) -> Batch:
    """One text of known word pieces."""
    ids = torch.arange(length)[None] % max(1, config.vocab_size - 8) + 5
    return Batch(input_ids=ids, mask=torch.ones_like(ids, dtype=torch.bool), token_type_ids=torch.zeros_like(ids))


def _states(model: Any, row: Batch, what: str) -> Any:
    try:
        return model(**model_inputs(model, row), output_hidden_states=True).hidden_states or ()
    except Exception as error:
        raise ConfigError(
            f"{what} cannot read a row ({type(error).__name__}: {error}); take an encoder, such as {FAMILIES}"
        ) from error
