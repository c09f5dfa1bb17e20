"""What a student starts from: its teacher, and how the teacher's embedding stage comes apart."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from nni_bertnas.data.tasks import TaskSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SAMPLE = 16  # word pieces that positions and token types are read off
_BATCH = 1024  # word pieces at once
_CLOSE = 1e-4


@dataclass(frozen=True, kw_only=True)
class EmbeddingParts:
    """An embedding stage as the norm of a sum, `scale * normed(words + positions + types) + shift`.

    Attributes:
        words: `(vocab, hidden)`.
        positions: `(places, hidden)`.
        types: Of the token types, `(types, hidden)`.
        scale: Of the norm, `(hidden,)`.
        shift: Of the norm, `(hidden,)`.
    """

    words: Tensor
    positions: Tensor
    types: Tensor
    scale: Tensor
    shift: Tensor


@dataclass(frozen=True, kw_only=True)
class Start:
    """What the students of a task start from.

    Attributes:
        teacher: A classifier on an encoder.
        spec: Of the task.
        note: What is saved of the task, see :func:`~nni_bertnas.data.tasks.task_note`.
        sep_token_id: Of the tokenizer.
        counts: How often every word piece stands in the training texts, `(vocab,)`; None: nothing is known.
        pieces: What the pretrained model makes of every word piece alone, `(vocab, hidden)`; None: it was not asked.
    """

    teacher: "PreTrainedModel"
    spec: TaskSpec
    note: Mapping[str, Any]
    sep_token_id: int | None = None
    counts: np.ndarray | None = None
    pieces: np.ndarray | None = None

    @cached_property
    def places(self) -> int:
        """Positions of a student."""
        return min(int(self.note["max_length"]), places(self.teacher))

    @cached_property
    def embeddings(self) -> EmbeddingParts:
        """Of the teacher."""
        return embedding_parts(self.teacher, self.places)


def places(model: nn.Module) -> int:
    """How many word pieces a model takes; RoBERTa and its like keep the first positions to themselves."""
    reserved = [
        module.padding_idx + 1
        for name, module in model.named_modules()
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.padding_idx is not None
    ]
    known = getattr(model.config, "max_position_embeddings", None)
    return (1 << 30 if known is None or known < 1 else int(known)) - max(reserved, default=0)


@torch.inference_mode()
def embedding_parts(teacher: "PreTrainedModel", count: int) -> EmbeddingParts:
    """What a student's embeddings start from, whatever the teacher's build.

    BERT's own tables where they give what enters the first layer: BERT, RoBERTa, DistilBERT, MPNet and their like.
    Where they do not, as the stage projects (ELECTRA, ALBERT) or has no positions (DeBERTa, ModernBERT), what enters
    the first layer is observed, of every word piece alone, and taken apart: scale and shift are its deviation and mean
    over the word pieces, positions and types the mean differences they make to some word pieces.

    Args:
        teacher: In eval mode.
        count: Of positions.
    """
    base, config = teacher.base_model, teacher.config
    stage, size = getattr(base, "embeddings", None), config.hidden_size
    device = next(base.parameters()).device
    sample = torch.linspace(0, config.vocab_size - 1, _SAMPLE + 2, device=device).long()[1:-1]
    tables: list[Any] = [getattr(stage, name, None) for name in ("word_embeddings", "position_embeddings", "LayerNorm")]
    if all(getattr(table, "weight", None) is not None for table in tables):
        words, positions, norm = (table.weight for table in tables)
        own = getattr(stage, "token_type_embeddings", None)
        types = torch.zeros(1, size, device=device) if own is None else own.weight
        padding = getattr(tables[1], "padding_idx", None)
        first = 0 if padding is None else padding + 1  # RoBERTa counts from there
        if words.shape[1] == size == types.shape[1] == positions.shape[1]:
            ids = sample[:count]
            total = words[ids] + positions[first : first + len(ids)] + types[0]
            eps = getattr(config, "layer_norm_eps", 1e-12)
            found = nn.functional.layer_norm(total, (size,), norm, tables[2].bias, eps)
            if torch.allclose(found, _entries(base, ids[None])[0], atol=_CLOSE):
                return _parts(words, positions[first : first + count], types, norm, tables[2].bias)
    alone = torch.cat([_entries(base, ids[:, None])[:, 0] for ids in torch.arange(config.vocab_size).split(_BATCH)])
    shift, scale = alone.mean(0), alone.std(0).clamp(min=1e-6)
    placed = ((_entries(base, sample[:, None].expand(-1, count)) - shift) / scale).mean(0)
    kinds = max(1, getattr(config, "type_vocab_size", 1))
    typed = torch.stack(
        [((_entries(base, sample[:, None], number)[:, 0] - shift) / scale).mean(0) for number in range(kinds)]
    )
    return _parts((alone - shift) / scale, placed - placed[0], typed - typed[0], scale, shift)


def _parts(*tensors: Tensor) -> EmbeddingParts:
    words, positions, types, scale, shift = (tensor.cpu().clone() for tensor in tensors)
    return EmbeddingParts(words=words, positions=positions, types=types, scale=scale, shift=shift)


def encoder_layers(model: "PreTrainedModel") -> nn.ModuleList | None:
    """A model's layers, one after another; None where they are not each a module of its own."""
    base, count = model.base_model, model.config.num_hidden_layers
    return next((part for part in base.modules() if isinstance(part, nn.ModuleList) and len(part) == count), None)


class _Enough(Exception):
    """What enters the first layer is known."""


def _entries(base: Any, ids: Tensor, kind: int = 0) -> Tensor:
    """What enters the first layer of an encoder, `(batch, seq)` -> `(batch, seq, hidden)`."""
    count, seen = base.config.num_hidden_layers, []

    def stop(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        seen.append(given[0] if given else named["hidden_states"])
        raise _Enough

    ids = ids.to(next(base.parameters()).device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if kind:
        inputs["token_type_ids"] = torch.full_like(ids, kind)
    layers = [part for part in base.modules() if isinstance(part, nn.ModuleList) and len(part) == count]
    hooks = [part[0].register_forward_pre_hook(stop, with_kwargs=True) for part in layers]
    try:
        found = base(**inputs, output_hidden_states=True).hidden_states[0]
    except _Enough:
        found = seen[0]
    finally:
        for hook in hooks:
            hook.remove()
    return found[:, : ids.shape[1]]
