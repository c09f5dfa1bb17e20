"""Heads: what turns the word pieces' vectors at the end of a student into what it classifies. One row of HEADS each.

A head is given one side, a whole text or joined pair, or the two sides of a pair, equally long, all first ones before
all second ones. That is `(x, mask, bias)`: vectors `(sides * batch, seq, width)`, mask `(sides * batch, seq)`, true
where a position counts, and what is added to the scores by which positions are weighed, likewise, or None. Needs torch
alone, so that a saved student loads anywhere.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Side = tuple[Tensor, Tensor, Tensor | None]


def masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the last dimension's unmasked entries; shares of zero where a row has none."""
    return scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(-1) * mask


class Head(nn.Module):
    """Base of all heads.

    Args:
        width: Of the vectors.
        symmetric: Whether a pair swapped must give the same.
    """

    sides = 2
    """How many it takes."""

    def __init__(self, width: int, symmetric: bool) -> None:
        super().__init__()
        self.symmetric = symmetric
        self.weigh = nn.Linear(width, 1)

    def forward(self, side: Side) -> tuple[Tensor, Tensor]:
        """Sides -> what is classified, `(batch, width)`, and a vector per text, `(sides * batch, width)`."""
        raise NotImplementedError

    def shares(self, side: Side) -> Tensor:
        """How much every position counts in a mean, by a learned score and its piece's own: `(batch, seq)`."""
        x, mask, bias = side
        scores = self.weigh(x).squeeze(-1)
        return masked_softmax(scores if bias is None else scores + bias, mask)


class Pool(Head):
    """A learned weighted mean beside the maximum, both over unmasked positions, through one dense layer."""

    sides = 1

    def __init__(self, width: int, symmetric: bool) -> None:
        super().__init__(width, symmetric)
        self.dense = nn.Linear(2 * width, width)

    def forward(self, side: Side) -> tuple[Tensor, Tensor]:
        """See :class:`Head`."""
        mean = weighted_mean(side[0], self.shares(side))
        return F.gelu(self.dense(torch.cat([mean, maximum(side)], dim=-1))), mean


class Compare(Head):
    """Each text pooled by itself; difference, product and cosine of the two (InferSent, arXiv 1705.02364).

    Where a swapped pair may have another answer, the two vectors themselves besides.
    """

    def __init__(self, width: int, symmetric: bool) -> None:
        super().__init__(width, symmetric)
        self.dense = nn.Linear((2 if symmetric else 4) * width + 1, width)

    def forward(self, side: Side) -> tuple[Tensor, Tensor]:
        """See :class:`Head`."""
        vectors = weighted_mean(side[0], self.shares(side))
        one, other = halves(vectors)
        cosine = F.cosine_similarity(one, other, dim=-1).unsqueeze(-1)
        features = [(one - other).abs(), one * other, cosine, *(() if self.symmetric else (one, other))]
        return F.gelu(self.dense(torch.cat(features, dim=-1))), vectors


class Align(Head):
    """Soft alignment of the two texts (decomposable attention, Parikh et al., arXiv 1606.01933).

    Every word piece is compared with the mean of the other text's pieces that are like it, by cosine; the comparisons
    are pooled by a weighted mean and a maximum, beside how much of the text finds nothing like it in the other.
    """

    def __init__(self, width: int, symmetric: bool) -> None:
        super().__init__(width, symmetric)
        part = width // 2
        self.sharpness = nn.Parameter(torch.tensor(10.0))
        self.compare = nn.Linear(2 * width, part)
        self.dense = nn.Linear(2 * (2 * part + 4), width)

    def forward(self, side: Side) -> tuple[Tensor, Tensor]:
        """See :class:`Head`."""
        x, mask, _ = side
        share = self.shares(side)
        first, second = halves(F.normalize(x, dim=-1))
        alike = first @ second.transpose(1, 2)  # (batch, seq, seq)
        similar = torch.cat([alike, alike.transpose(1, 2)])
        there = swap(mask).unsqueeze(1)  # of the other text
        aligned = masked_softmax(self.sharpness * similar, there) @ swap(x)
        compared = F.gelu(self.compare(torch.cat([(x - aligned).abs(), x * aligned], dim=-1)))
        missing = 1 - similar.masked_fill(~there, -1.0).amax(-1)  # 0 where the same piece is there
        weighted = (share * missing).sum(-1)
        missing, count = missing * mask, mask.sum(-1).clamp(min=1)
        numbers = torch.stack([weighted, missing.amax(-1), missing.sum(-1) / count, count.log() / 4], dim=-1)
        found = torch.cat([weighted_mean(compared, share), maximum((compared, mask, None)), numbers], dim=-1)
        first, second = halves(found)
        both = [first + second, (first - second).abs()] if self.symmetric else [first, second]
        return F.gelu(self.dense(torch.cat(both, dim=-1))), weighted_mean(x, share)


def halves(values: Tensor) -> tuple[Tensor, Tensor]:
    """Those of first texts and those of second ones, each `(batch, ...)`, out of `(2 * batch, ...)`."""
    batch = values.shape[0] // 2  # not chunk(), by which torch.export takes the batch to be always of one size
    return values[:batch], values[batch:]


def swap(values: Tensor) -> Tensor:
    """The other text's in place of each text's: `(2 * batch, ...)`."""
    first, second = halves(values)
    return torch.cat([second, first])


def split_pairs(mask: Tensor, second: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
    """The two texts of every pair as sequences of their own, all first ones before all second ones.

    A first text leaves the special piece behind that opens the joint sequence, so that both are alike: the text and
    what ends it.

    Args:
        mask: `(batch, seq)`, true at word pieces.
        second: `(batch, seq)`, true in the second text.
        *values: Each `(batch, seq)` or `(batch, seq, width)`.

    Returns:
        Every value as `(2 * batch, side)` or `(2 * batch, side, width)`, and the mask `(2 * batch, side)`.
    """
    first = mask & ~second
    keep = torch.cat([first & (first.cumsum(1) > 1), second])
    count = keep.sum(1, keepdim=True)
    # Kept ones first, in their order; by keys that are all different, as ONNX knows no stable sort.
    places = torch.arange(keep.shape[1], device=keep.device)
    keys = torch.where(keep, keep.shape[1] - places, -places)
    longest: Any = count.max()
    if not torch.jit.is_tracing():  # which would take a number to be the same for all rows
        longest = longest.item()
    if torch.compiler.is_exporting():
        torch._check(longest > 1)  # else a length of 1 is taken for one that is spread
    order = keys.argsort(dim=1, descending=True)[:, :longest]
    sides = []
    for value in values:
        index = order if value.ndim == 2 else order.unsqueeze(-1).expand(-1, -1, value.shape[-1])
        sides.append(torch.cat([value, value]).gather(1, index))
    return *sides, torch.arange(order.shape[1], device=mask.device) < count


class Joint(nn.Module):
    """A pair is read as one sequence, so that each text is read in the light of the other."""

    def forward(
        self, input_ids: Tensor, mask: Tensor, token_type_ids: Tensor | None, second: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Ids, mask, types and where the second texts stand, each `(batch, seq)`: those of what is read.

        Where the second texts stand is None where all of them come after all first ones, as sequences of their own.
        """
        return input_ids, mask, token_type_ids, second


class Separate(nn.Module):
    """Each text of a pair is read by itself; see :func:`split_pairs`."""

    def forward(
        self, input_ids: Tensor, mask: Tensor, token_type_ids: Tensor | None, second: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """See :class:`Joint`: `(2 * batch, side)`."""
        input_ids, mask = split_pairs(mask, second, input_ids)
        return input_ids, mask, None, None


def weighted_mean(x: Tensor, share: Tensor) -> Tensor:
    """`(batch, seq, width)`, `(batch, seq)` -> `(batch, width)`."""
    return (share.unsqueeze(1) @ x).squeeze(1)


def maximum(side: Side) -> Tensor:
    """The greatest value of every unit over unmasked positions, `(batch, width)`; the least number where none is."""
    x, mask, _ = side
    return x.masked_fill(~mask.unsqueeze(-1), torch.finfo(x.dtype).min).amax(dim=1)


HEADS: dict[str, type[Head]] = {"pool": Pool, "compare": Compare, "align": Align}
ENCODINGS: dict[str, type[nn.Module]] = {"joint": Joint, "separate": Separate}
