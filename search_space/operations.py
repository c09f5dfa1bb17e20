"""The operations a searched layer chooses from.

Every operation is `(x, mask) -> x` with x `(batch, seq, hidden)` and mask `(batch, seq)`, bool, true where
a position is kept. The shape is kept; an unmasked output never depends on a masked position; what stands at
masked positions of the output is finite and meaningless. Operations carry no norm and no residual: the
layer around them is `x + operation(norm(x))`.

Convolutions run over positions, with hidden units as channels (Kim, arXiv 1408.5882).
"""

import contextlib
import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def blank(x: Tensor, mask: Tensor) -> Tensor:
    """`x` with masked positions set to zero, so that a window reaching over them reads nothing."""
    return x * mask.unsqueeze(-1).to(x.dtype)


class Convolution(nn.Module):
    """Same-length convolution over positions, then GELU.

    TextNAS (arXiv 1912.10729) and AdaBERT (arXiv 2001.04246) without their batch norm: the layer's own norm takes its
    part, and no statistics are shared between paths.
    """

    def __init__(self, hidden_size: int, kernel_size: int, dilation: int = 1) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(hidden_size, hidden_size, kernel_size, padding="same", dilation=dilation)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """`(batch, seq, hidden)`, `(batch, seq)` -> `(batch, seq, hidden)`."""
        return F.gelu(self.convolution(blank(x, mask).transpose(1, 2))).transpose(1, 2)


class MaxPool(nn.Module):
    """Maximum over a window of unmasked positions."""

    def __init__(self, kernel_size: int) -> None:
        super().__init__()
        self.kernel_size = kernel_size

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """`(batch, seq, hidden)`, `(batch, seq)` -> `(batch, seq, hidden)`."""
        hidden = ~mask.unsqueeze(-1)
        lowest = x.masked_fill(hidden, torch.finfo(x.dtype).min)
        half = self.kernel_size // 2
        if torch.compiler.is_exporting():  # which takes the length that goes into max_pool1d to be always the same
            around = F.pad(lowest, (0, 0, half, half), value=torch.finfo(x.dtype).min)
            shifted = [around[:, first : first + x.shape[1]] for first in range(self.kernel_size)]
            return torch.stack(shifted).amax(0).masked_fill(hidden, 0.0)
        pooled = F.max_pool1d(lowest.transpose(1, 2), self.kernel_size, stride=1, padding=half)
        return pooled.transpose(1, 2).masked_fill(hidden, 0.0)


class AveragePool(nn.Module):
    """Mean over the unmasked positions of a window."""

    def __init__(self, kernel_size: int) -> None:
        super().__init__()
        self.kernel_size = kernel_size

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """`(batch, seq, hidden)`, `(batch, seq)` -> `(batch, seq, hidden)`."""
        total, share = (
            F.avg_pool1d(values, self.kernel_size, stride=1, padding=self.kernel_size // 2)
            for values in (blank(x, mask).transpose(1, 2), mask.to(x.dtype).unsqueeze(1))
        )
        return (total / share.clamp(min=1 / self.kernel_size)).transpose(1, 2)


class BidirectionalGRU(nn.Module):
    """One GRU layer in each direction, half the width each (TextNAS, arXiv 1912.10729).

    The backward direction starts at each row's last unmasked position. Any mask is obeyed, not only one
    that pads on the right: unmasked positions are moved to the front and put back afterwards.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.ahead = nn.GRU(hidden_size, hidden_size - hidden_size // 2, batch_first=True)
        self.back = nn.GRU(hidden_size, hidden_size // 2, batch_first=True)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """`(batch, seq, hidden)`, `(batch, seq)` -> `(batch, seq, hidden)`."""
        positions = torch.arange(x.shape[1], device=x.device)
        order = torch.argsort(torch.where(mask, x.shape[1] - positions, -positions), dim=1, descending=True)
        length = mask.sum(dim=1, keepdim=True)
        flipped = torch.where(positions < length, length - 1 - positions, positions)
        front = _take(x, order)
        ahead, _ = self.ahead(front)
        back, _ = self.back(_take(front, flipped))
        both = torch.cat([ahead, _take(back, flipped)], dim=-1)
        return _take(both, torch.argsort(order, dim=1))


def _take(x: Tensor, index: Tensor) -> Tensor:
    return x.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


class MultiHeadAttention(nn.Module):
    """Scaled dot-product self-attention with an output projection (Vaswani et al., arXiv 1706.03762)."""

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query_key_value = nn.Linear(hidden_size, 3 * hidden_size)
        self.output = nn.Linear(hidden_size, hidden_size)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """`(batch, seq, hidden)`, `(batch, seq)` -> `(batch, seq, hidden)`."""
        batch, seq, hidden = x.shape
        heads = self.query_key_value(x).view(batch, seq, 3, self.num_heads, hidden // self.num_heads)
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        narrow = x.device.type == "cpu" and query.dtype == torch.bfloat16
        if narrow:  # torch's attention takes ten times as long in it on CPU
            query, key, value = query.float(), key.float(), value.float()
        # Not minus infinity: a row with nothing to attend to would give NaN, and so attends to everything.
        bias = (1 - mask.to(query.dtype))[:, None, None, :] * torch.finfo(query.dtype).min
        with torch.autocast("cpu", enabled=False) if narrow else contextlib.nullcontext():
            attended = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        return self.output(attended.transpose(1, 2).reshape(batch, seq, hidden).to(x.dtype))


class FeedForward(nn.Module):
    """Two dense layers with GELU between them, on every position by itself (Vaswani et al., arXiv 1706.03762)."""

    def __init__(self, hidden_size: int, expansion: int) -> None:
        super().__init__()
        self.widen = nn.Linear(hidden_size, expansion * hidden_size)
        self.output = nn.Linear(expansion * hidden_size, hidden_size)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """`(batch, seq, hidden)`, `(batch, seq)` -> `(batch, seq, hidden)`."""
        return self.output(F.gelu(self.widen(x)))


class SeparableConvolution(nn.Module):
    """A convolution of every channel by itself, then one over channels, then GELU (NAS-BERT, arXiv 2105.14444)."""

    def __init__(self, hidden_size: int, kernel_size: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv1d(hidden_size, hidden_size, kernel_size, padding=kernel_size // 2, groups=hidden_size)
        self.pointwise = nn.Linear(hidden_size, hidden_size)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """`(batch, seq, hidden)`, `(batch, seq)` -> `(batch, seq, hidden)`."""
        return F.gelu(self.pointwise(self.depthwise(blank(x, mask).transpose(1, 2)).transpose(1, 2)))


class AtWidth(nn.Module):
    """An operation at a smaller width, between a linear map into it and one out (NAS-BERT, arXiv 2105.14444)."""

    def __init__(self, hidden_size: int, divisor: int, make: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.into = nn.Linear(hidden_size, hidden_size // divisor)
        self.operation = make(hidden_size // divisor)
        self.out = nn.Linear(hidden_size // divisor, hidden_size)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """`(batch, seq, hidden)`, `(batch, seq)` -> `(batch, seq, hidden)`."""
        return self.out(self.operation(self.into(x), mask))


class KimConvolution(nn.Module):
    """Parallel 3-, 4- and 5-gram convolutions, concatenated and projected (Kim, arXiv 1408.5882).

    Kim pools each n-gram map over time; here every position keeps its own, so that the shape stays.
    """

    KERNEL_SIZES = (3, 4, 5)

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        width = max(1, hidden_size // len(self.KERNEL_SIZES))
        self.convolutions = nn.ModuleList(nn.Conv1d(hidden_size, width, size) for size in self.KERNEL_SIZES)
        self.output = nn.Linear(width * len(self.KERNEL_SIZES), hidden_size)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """`(batch, seq, hidden)`, `(batch, seq)` -> `(batch, seq, hidden)`."""
        channels = blank(x, mask).transpose(1, 2)
        grams = [
            convolution(F.pad(channels, ((size - 1) // 2, size // 2)))
            for size, convolution in zip(self.KERNEL_SIZES, self.convolutions, strict=True)
        ]
        return self.output(F.gelu(torch.cat(grams, dim=1)).transpose(1, 2))


class Identity(nn.Module):
    """The normed input itself: the layer doubles its input's direction and learns nothing."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """`(batch, seq, hidden)`, `(batch, seq)` -> `(batch, seq, hidden)`."""
        return x


class Zero(nn.Module):
    """Nothing: the layer hands its input on, so a cell can become shallower."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """`(batch, seq, hidden)`, `(batch, seq)` -> `(batch, seq, hidden)`."""
        return x * 0  # not zeros_like: a cell of nothing else must still be trainable


# name -> hidden_size -> operation
OPERATIONS: dict[str, Callable[[int], nn.Module]] = {
    "convolution_1": lambda hidden_size: Convolution(hidden_size, 1),
    "convolution_3": lambda hidden_size: Convolution(hidden_size, 3),
    "convolution_5": lambda hidden_size: Convolution(hidden_size, 5),
    "convolution_7": lambda hidden_size: Convolution(hidden_size, 7),
    "dilated_convolution_3": lambda hidden_size: Convolution(hidden_size, 3, dilation=2),
    "dilated_convolution_5": lambda hidden_size: Convolution(hidden_size, 5, dilation=2),
    "dilated_convolution_7": lambda hidden_size: Convolution(hidden_size, 7, dilation=2),
    "max_pool_3": lambda hidden_size: MaxPool(3),
    "average_pool_3": lambda hidden_size: AveragePool(3),
    "bidirectional_gru": BidirectionalGRU,
    "attention_4": lambda hidden_size: MultiHeadAttention(hidden_size, 4),
    "attention_8": lambda hidden_size: MultiHeadAttention(hidden_size, 8),
    "attention_12": lambda hidden_size: MultiHeadAttention(hidden_size, 12),
    "kim_convolution": KimConvolution,
    "feed_forward_1": lambda hidden_size: FeedForward(hidden_size, 1),
    "feed_forward_2": lambda hidden_size: FeedForward(hidden_size, 2),
    "feed_forward_4": lambda hidden_size: FeedForward(hidden_size, 4),
    "separable_convolution_3": lambda hidden_size: SeparableConvolution(hidden_size, 3),
    "separable_convolution_5": lambda hidden_size: SeparableConvolution(hidden_size, 5),
    "separable_convolution_7": lambda hidden_size: SeparableConvolution(hidden_size, 7),
    "identity": lambda hidden_size: Identity(),
    "zero": lambda hidden_size: Zero(),
}

# What the width must divide by: heads.
_DIVISORS = {"attention_4": 4, "attention_8": 8, "attention_12": 12}

# The operations that NAS-BERT offers at several widths; `<name>_half` and `<name>_quarter` are the narrower ones.
AT_WIDTHS = (
    "attention_4", "feed_forward_1", "feed_forward_2", "feed_forward_4",
    "separable_convolution_3", "separable_convolution_5", "separable_convolution_7",
)  # fmt: skip
for _name in AT_WIDTHS:
    for _suffix, _divisor in (("half", 2), ("quarter", 4)):
        OPERATIONS[f"{_name}_{_suffix}"] = partial(AtWidth, divisor=_divisor, make=OPERATIONS[_name])
        _DIVISORS[f"{_name}_{_suffix}"] = _divisor * _DIVISORS.get(_name, 1)


def make_operation(name: str, hidden_size: int) -> nn.Module:
    """Build one operation by its name.

    Args:
        name: A key of OPERATIONS, or the dotted name of a class of the user's own that takes the width,
            `package.module.Class`; in architectures its dots are colons, as a module's name may hold none.
        hidden_size: Width.

    Raises:
        ValueError: The name is unknown, or the width does not suit it.
    """
    if "." in name or ":" in name:
        kind = import_by_name(name)
        if not (isinstance(kind, type) and issubclass(kind, nn.Module)):  # nothing else that a file names is called
            raise ValueError(f"operation {name} must be a class of torch.nn.Module, got {kind!r}")
        operation: nn.Module = kind(hidden_size)
        return operation
    if name not in OPERATIONS:
        raise ValueError(f"unknown operation {name!r}; choose one of {', '.join(OPERATIONS)}, or a dotted name")
    if hidden_size % _DIVISORS.get(name, 1):
        raise ValueError(f"{name} needs a width that {_DIVISORS[name]} divides, got {hidden_size}")
    return OPERATIONS[name](hidden_size)


def import_by_name(name: str) -> Any:
    """What a dotted name stands for; colons count as dots.

    Raises:
        ValueError: There is no such module, or nothing of that name in it.
    """
    module, _, attribute = name.replace(":", ".").rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{name} cannot be imported ({error}); its module must be on PYTHONPATH") from error


def suits_width(name: str, hidden_size: int) -> bool:
    """Whether a width allows an operation."""
    return hidden_size % _DIVISORS.get(name, 1) == 0


def parameter_free(name: str, hidden_size: int) -> bool:
    """Whether an operation learns nothing."""
    return next(make_operation(name, hidden_size).parameters(), None) is None
