"""What stands in relation to what: in a cell's attention, and in the teacher's at the block's entry.

The teacher's attention in the layer that follows an edge is a function of the hidden state there, and need not be
stored. Heads are split anew, so that student and teacher may have any number (MiniLMv2, Wang et al., arXiv 2012.15828).
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nni_bertnas.errors import ConfigError
from search_space.operations import MultiHeadAttention

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_NAMES = (("query", "key", "value"), ("q_lin", "k_lin", "v_lin"))  # of BERT and RoBERTa, of DistilBERT


@dataclass(frozen=True, kw_only=True)
class Attention:
    """The teacher's attention in the layers that follow some edges.

    Attributes:
        weights: Of query, key and value, each `(hidden, hidden)`, by edge.
        biases: Likewise, each `(hidden,)`.
        heads: Of a layer.
    """

    weights: Sequence[Sequence[Tensor]]
    biases: Sequence[Sequence[Tensor]]
    heads: int

    @classmethod
    def of(cls, model: "PreTrainedModel", edges: Sequence[int]) -> "Attention":
        """That of a model, from its weights.

        Raises:
            ConfigError: It has no attention like BERT's.
        """
        layers = [
            module for module in model.modules() if isinstance(module, nn.ModuleList)
            and len(module) == model.config.num_hidden_layers
        ]  # fmt: skip
        found = [_projections(layers[0][edge]) if layers else None for edge in edges]
        if None in found:
            raise ConfigError(
                f"teacher.model: {type(model).__name__} has not BERT's attention; leave attention_relation and "
                "value_relation out of the losses"
            )
        maps = [one for one in found if one is not None]
        return cls(
            weights=[[part.weight.detach() for part in one] for one in maps],
            biases=[[part.bias.detach() for part in one] for one in maps],
            heads=model.config.num_attention_heads,
        )

    def project(self, number: int, hidden: Tensor) -> Tensor:
        """Query, key and value of hidden states at an edge: `(batch, seq, hidden)` -> `(3, batch, seq, hidden)`."""
        maps = zip(self.weights[number], self.biases[number], strict=True)
        return torch.stack([F.linear(hidden, weight.to(hidden), bias.to(hidden)) for weight, bias in maps])


def _projections(layer: nn.Module) -> list[nn.Linear] | None:
    parts = dict(layer.named_modules())
    for names in _NAMES:
        found = [next((part for path, part in parts.items() if path.endswith(f".{name}")), None) for name in names]
        if all(isinstance(part, nn.Linear) for part in found):
            return found  # type: ignore[return-value]
    return None


@contextmanager
def captured(bodies: Sequence[nn.Module]) -> Iterator[list[Tensor | None]]:
    """Query, key and value of the first attention that runs in every cell: `(3, batch, seq, width)`, or None."""
    found: list[Tensor | None] = [None] * len(bodies)

    def keep(number: int, module: nn.Module, inputs: Any, output: Tensor) -> None:
        if found[number] is None:
            found[number] = torch.stack(output.chunk(3, dim=-1))

    hooks = [
        module.query_key_value.register_forward_hook(partial(keep, number))
        for number, body in enumerate(bodies)
        for module in body.modules()
        if isinstance(module, MultiHeadAttention)
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def divergence(own: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor], mask: Tensor, heads: int) -> Tensor:
    """Kullback-Leibler divergence between the softmaxes of scaled dot products, mean over word pieces and heads.

    MiniLM (Wang et al., arXiv 2002.10957, equations 3 and 6 to 8).

    Args:
        own: The two that are multiplied, of the student, each `(batch, seq, width)`.
        wanted: Of the teacher, each `(batch, seq, hidden)`.
        mask: `(batch, seq)`, bool.
        heads: Into which both are split, as far as both widths allow.
    """
    heads = math.gcd(heads, own[0].shape[-1], wanted[0].shape[-1])
    made, target = (_logarithms(*pair, mask, heads) for pair in (own, wanted))
    found = (target.exp() * (target - made)).masked_fill(~mask[:, None, None], 0.0).sum(-1)  # (batch, heads, seq)
    return found.mean(1)[mask].mean()


def _logarithms(first: Tensor, second: Tensor, mask: Tensor, heads: int) -> Tensor:
    first, second = (x.float().unflatten(-1, (heads, -1)).transpose(1, 2) for x in (first, second))
    products = first @ second.transpose(2, 3) / first.shape[-1] ** 0.5
    return products.masked_fill(~mask[:, None, None], torch.finfo(products.dtype).min).log_softmax(-1)
