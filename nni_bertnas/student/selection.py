"""One candidate per block, the best sum of scores under a budget."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf


@dataclass(frozen=True, kw_only=True)
class Option:
    """A candidate as selection sees it; costs are those it adds to the whole student."""

    score: float
    num_params: int
    latency_ms: float


@dataclass(frozen=True, kw_only=True)
class Combination:
    """One option per block, with the whole student's estimated cost."""

    choice: tuple[int, ...]  # index of the option, block by block
    score: float  # sum over blocks
    num_params: int
    latency_ms: float


def combinations(
    blocks: Sequence[Sequence[Option]],
    base: Option,
    *,
    max_params: float | None = None,
    max_latency_ms: float | None = None,
) -> list[Combination]:
    """All combinations within the limits, best summed score first.

    Args:
        blocks: The options of every block.
        base: What the student costs without its cells (its score counts nothing).
        max_params: Limit on the whole student's parameters.
        max_latency_ms: Limit on its latency at batch 1.
    """
    found = []
    for choice in itertools.product(*(range(len(options)) for options in blocks)):
        picked = [options[index] for options, index in zip(blocks, choice, strict=True)]
        found.append(
            Combination(
                choice=choice,
                score=sum(option.score for option in picked),
                num_params=base.num_params + sum(option.num_params for option in picked),
                latency_ms=base.latency_ms + sum(option.latency_ms for option in picked),
            )
        )
    params_limit, latency_limit = max_params or inf, max_latency_ms or inf
    fitting = [one for one in found if one.num_params <= params_limit and one.latency_ms <= latency_limit]
    return sorted(fitting, key=lambda one: one.score)
