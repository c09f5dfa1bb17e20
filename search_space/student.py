"""The whole student as a Hugging Face model.

Needs torch and transformers alone, so that a saved student loads anywhere. `save_pretrained` copies this file,
`cells.py`, `embeddings.py`, `heads.py` and `operations.py` beside the weights, so
`AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)` works where this project is not
installed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from .cells import Cell, build_body
from .embeddings import Embeddings, FusedEmbeddings
from .heads import ENCODINGS, HEADS, Separate, Side, weighted_mean

# transformers wants a configuration that can be made from nothing
_CELLS = ({"space": "layers", "depth": 1, "architecture": {"layer_0": "convolution_3"}},)


class StudentConfig(PretrainedConfig):
    """Shape of a student.

    Args:
        cells: For every block its `space`, `depth` and `architecture`; see `cells.py`.
        hidden_size: Width of the cells.
        teacher_hidden_size: Width in which the embeddings are summed.
        embedding_size: Rank of the word embedding.
        head: A key of `heads.HEADS`.
        encoding: How a pair is read, a key of `heads.ENCODINGS`.
        symmetric: Whether a pair swapped has the same answer, where the head compares.
        token_weights: Whether every word piece has a learned weight in the head's means.
        static_path: Whether the word pieces' vectors lead past the cells into the head. Without cells they alone do.
        sep_token_id: What ends a text, by which the second of a pair is found where there are no token types.
        fused: Whether the map into the first cell is part of the embeddings, see
            :meth:`StudentForSequenceClassification.fused`.
    """

    model_type = "bertnas-student"

    def __init__(
        self,
        cells: Sequence[dict[str, Any]] = _CELLS,
        hidden_size: int = 192,
        teacher_hidden_size: int = 384,
        embedding_size: int = 128,
        vocab_size: int = 30522,
        max_position_embeddings: int = 512,
        type_vocab_size: int = 2,
        layer_norm_eps: float = 1e-12,
        pad_token_id: int = 0,
        dropout: float = 0.1,
        head: str = "pool",
        encoding: str = "joint",
        symmetric: bool = False,
        token_weights: bool = False,
        static_path: bool = False,
        sep_token_id: int | None = None,
        fused: bool = False,
        **kwargs: object,
    ) -> None:
        self.cells = list(cells)
        self.hidden_size = hidden_size
        self.teacher_hidden_size = teacher_hidden_size
        self.embedding_size = embedding_size
        self.vocab_size = vocab_size
        self.max_position_embeddings = max_position_embeddings
        self.type_vocab_size = type_vocab_size
        self.layer_norm_eps = layer_norm_eps
        self.dropout = dropout
        self.head = head
        self.encoding = encoding
        self.symmetric = symmetric
        self.token_weights = token_weights
        self.static_path = static_path
        self.fused = fused
        super().__init__(pad_token_id=pad_token_id, sep_token_id=sep_token_id, **kwargs)


@dataclass
class StudentOutput(SequenceClassifierOutput):
    """What a student gives.

    Attributes:
        vectors: One per text, `(sides * batch, width)`, all first texts before all second ones.
    """

    vectors: Tensor | None = None


class StudentForSequenceClassification(PreTrainedModel):
    """Embeddings, the chained cells, a head, classifier."""

    config_class = StudentConfig
    base_model_prefix = "student"

    def __init__(self, config: StudentConfig) -> None:
        super().__init__(config)
        width = config.hidden_size if config.cells else config.embedding_size
        same = config.teacher_hidden_size == width
        self.embeddings: Embeddings | FusedEmbeddings = FusedEmbeddings(config) if config.fused else Embeddings(config)
        self.links = nn.ModuleList(
            nn.Identity()
            if same or (config.fused and block == 0)
            else nn.Linear(config.teacher_hidden_size if block == 0 else width, width)
            for block in range(len(config.cells))
        )
        self.cells = nn.ModuleList(
            build_body(one["space"], one["architecture"], one["depth"], width) for one in config.cells
        )
        self.norm = nn.LayerNorm(width) if config.cells else nn.Identity()
        past = config.static_path and config.cells
        self.static = nn.Linear(config.embedding_size, width, bias=False) if past else None
        self.token_weight = nn.Embedding(config.vocab_size, 1) if config.token_weights else None
        self.encoding = ENCODINGS[config.encoding]()
        self.pool = HEADS[config.head](width, config.symmetric)
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(width, config.num_labels)
        self.post_init()

    @property
    def tables(self) -> list[nn.Embedding]:
        """What has a row per word piece."""
        return [self.embeddings.word, *([] if self.token_weight is None else [self.token_weight])]

    def _init_weights(self, module: nn.Module) -> None:
        reset = getattr(module, "reset_parameters", None)
        if callable(reset):
            reset()
        if module is self.static or module is self.token_weight:  # at first neither changes anything
            nn.init.zeros_(module.weight)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: object,
    ) -> StudentOutput | tuple[Tensor, ...]:
        """Classify token ids.

        Args:
            input_ids: `(batch, seq)`.
            attention_mask: `(batch, seq)`, 1 = keep; all are kept without it.
            token_type_ids: `(batch, seq)`; without it, or where there is one type alone, the second text of a pair
                starts behind the first `sep_token_id`.
            labels: `(batch,)`, class numbers, or scores where there is one output; `(batch, num_labels)`, 0 or 1,
                where the problem is `multi_label_classification`; with them the output has the mean cross-entropy,
                squared error, or binary cross-entropy, as loss.
            output_hidden_states: Whether the output has the hidden state at every block's exit, each
                `(batch, seq, hidden)`, or `(2 * batch, side, hidden)` of pairs read separately; see `split_pairs`.
            return_dict: False for a plain tuple.
            **kwargs: Ignored; what pipelines pass besides.

        Returns:
            logits `(batch, num_labels)`, and what was asked for.
        """
        mask = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        mask, second = self._sides_of(input_ids, mask, token_type_ids)
        separate = False
        if second is not None and self.pool.sides == 2:
            input_ids, mask, token_type_ids, second = self.encoding(input_ids, mask, token_type_ids, second)
            separate = second is None
        side, exits = self._read(input_ids, mask, token_type_ids, second, first=int(separate))
        pooled, vectors = self.pool(side if second is None or self.pool.sides == 1 else _both(side, second))
        logits = self.classifier(self.dropout(pooled))
        loss = None
        if labels is not None and self.config.num_labels == 1:
            loss = nn.functional.mse_loss(logits[:, 0], labels.to(logits.dtype))
        elif labels is not None and self.config.problem_type == "multi_label_classification":
            loss = nn.functional.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
        elif labels is not None:
            loss = nn.functional.cross_entropy(logits, labels)
        hidden_states = exits if output_hidden_states else None
        if return_dict is False:
            return StudentOutput(loss=loss, logits=logits, hidden_states=hidden_states).to_tuple()
        return StudentOutput(loss=loss, logits=logits, hidden_states=hidden_states, vectors=vectors)

    def text_vectors(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """What single texts come to before a pair of them is compared.

        Args:
            input_ids: `(batch, seq)`.
            attention_mask: `(batch, seq)`, 1 = keep.

        Returns:
            One vector per text, `(batch, width)`, and the hidden state at every block's exit.
        """
        first = int(isinstance(self.encoding, Separate))  # then the piece that opens a sequence is left out
        side, exits = self._read(input_ids[:, first:], attention_mask[:, first:].bool(), None, None, first=first)
        return weighted_mean(side[0], self.pool.shares(side)), exits

    def _read(
        self, input_ids: Tensor, mask: Tensor, token_type_ids: Tensor | None, second: Tensor | None, first: int
    ) -> tuple[Side, tuple[Tensor, ...]]:
        """What goes into the head, and the hidden state at every block's exit."""
        words, x = self.embeddings(input_ids, token_type_ids, first)
        exits = []
        for link, body in zip(self.links, self.cells, strict=True):
            x = body(link(x), mask, second)
            exits.append(x)
        x = self.norm(x)
        if self.static is not None:
            x = x + self.static(words)
        bias = None if self.token_weight is None else self.token_weight(input_ids).squeeze(-1)
        return (x, mask, bias), tuple(exits)

    def _sides_of(self, input_ids: Tensor, mask: Tensor, token_type_ids: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """What is read, and where the second text of every pair stands, `(batch, seq)`; None where nothing asks for it.

        Of two separators between the texts (RoBERTa) the second is of neither, and is not read.
        """
        if token_type_ids is not None and self.config.type_vocab_size > 1:
            return mask, token_type_ids.bool() & mask
        if self.pool.sides == 1:
            return mask, None
        ends = (input_ids == self.config.sep_token_id) & mask
        before = ends.cumsum(1) - ends.long()
        doubled = ends & ((before > 0).cumsum(1) == 1)  # no slices: torch.export would ask for three positions
        return mask & ~doubled, (before > 0) & mask & ~doubled

    @torch.no_grad()
    def fused(self) -> "StudentForSequenceClassification":
        """The same student for use: it answers the same but for rounding, with less work, and is not meant to learn.

        Of blocks without a layer, whose maps follow one another, one is made, so hidden states come at the exits of the
        blocks that are left; the map into the first becomes part of the embeddings, see :class:`FusedEmbeddings`.
        """
        embeddings = self.embeddings
        if isinstance(embeddings, FusedEmbeddings) or not self.cells:
            return self
        kept: list[tuple[int, nn.Module]] = []  # blocks, each with the map into it
        before: list[nn.Linear] = []
        for number, (link, one) in enumerate(zip(self.links, self.config.cells, strict=True)):
            before += [link] if isinstance(link, nn.Linear) else []
            if one["depth"] or number + 1 == len(self.cells):
                kept.append((number, _product(before)))
                before = []
        expands = isinstance(embeddings.expand, nn.Linear)
        if len(kept) == len(self.cells) and not expands:
            return self
        cells = [self.config.cells[number] for number, _ in kept]
        fused = type(self)(StudentConfig(**{**self.config.to_dict(), "cells": cells, "fused": expands}))
        whole = ("links.", "cells.", *(["embeddings."] if expands else []))
        rest = {name: value for name, value in self.state_dict().items() if not name.startswith(whole)}
        fused.load_state_dict(rest, strict=False)
        for body, link, (number, product) in zip(fused.cells, fused.links, kept, strict=True):
            body.load_state_dict(self.cells[number].state_dict())
            if link is fused.links[0] and isinstance(fused.embeddings, FusedEmbeddings):
                fused.embeddings.take(embeddings, product)
            else:
                link.load_state_dict(product.state_dict())
        return fused.train(self.training)

    @torch.no_grad()
    def load_cells(self, cells: Sequence[Cell]) -> None:
        """Take over trained cells; the map out of one block and into the next fold into one matrix.

        Args:
            cells: One per block, of the architectures in `config.cells`; where it has none, nothing is done.
        """
        if not self.cells:
            return
        previous = None
        for link, body, cell in zip(self.links, self.cells, cells, strict=True):
            body.load_state_dict(cell.body.state_dict())
            if isinstance(link, nn.Linear):
                into = cell.into
                assert isinstance(into, nn.Linear)
                if previous is None:
                    link.load_state_dict(into.state_dict())
                else:
                    assert isinstance(previous, nn.Linear)
                    link.weight.copy_(into.weight @ previous.weight)
                    link.bias.copy_(into.weight @ previous.bias + into.bias)
            previous = cell.out


def _both(side: Side, second: Tensor) -> Side:
    """The two texts of pairs that were read as one sequence."""
    x, mask, bias = side
    biases = None if bias is None else torch.cat([bias, bias])
    return torch.cat([x, x]), torch.cat([mask & ~second, mask & second]), biases


def _product(maps: Sequence[nn.Linear]) -> nn.Module:
    """One map in place of several that follow one another."""
    if not maps:
        return nn.Identity()
    weight, bias = maps[0].weight.double(), maps[0].bias.double()
    for one in maps[1:]:
        weight, bias = one.weight.double() @ weight, one.weight.double() @ bias + one.bias.double()
    product = nn.Linear(weight.shape[1], weight.shape[0])
    product.weight.copy_(weight)
    product.bias.copy_(bias)
    return product


StudentConfig.register_for_auto_class()
StudentForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")
AutoConfig.register(StudentConfig.model_type, StudentConfig, exist_ok=True)
AutoModelForSequenceClassification.register(StudentConfig, StudentForSequenceClassification, exist_ok=True)
