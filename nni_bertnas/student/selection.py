"""One candidate per block, the best sum of scores under a budget."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from nni_bertnas.student.candidates import Candidate


@dataclass(frozen=True, kw_only=True)
class Combination:
    """One candidate per block, with the whole student's estimated cost."""

    choice: tuple[int, ...]  # index of the candidate, block by block
    score: float  # sum over blocks
    num_params: int
    latency_ms: float


def combinations(
    blocks: Sequence[Sequence[Candidate]],
    base: Candidate,
    *,
    max_params: float | None = None,
    max_latency_ms: float | None = None,
) -> list[Combination]:
    """All combinations within the limits, best summed score first.

    Args:
        blocks: The candidates of every block, each with the costs that it adds to the whole student.
        base: What the student costs without its cells; its score counts nothing.
        max_params: Limit on the whole student's parameters.
        max_latency_ms: Limit on its latency at batch 1.
    """
    found = []
    for choice in itertools.product(*(range(len(candidates)) for candidates in blocks)):
        picked = [candidates[index] for candidates, index in zip(blocks, choice, strict=True)]
        found.append(
            Combination(
                choice=choice,
                score=sum(one.score for one in picked),
                num_params=base.num_params + sum(one.num_params for one in picked),
                latency_ms=base.latency_ms + sum(one.latency_ms for one in picked),
            )
        )
    params_limit, latency_limit = max_params or inf, max_latency_ms or inf
    fitting = [one for one in found if one.num_params <= params_limit and one.latency_ms <= latency_limit]
    return sorted(fitting, key=lambda one: one.score)
