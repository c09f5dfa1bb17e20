"""One candidate per block: the best sum of scores within limits, exactly, without trying all."""

from bisect import insort
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import add, mul

import numpy as np
from scipy.optimize import linprog

from nni_bertnas.student.candidates import Candidate

_ROUNDING = 1e-9  # by which sums of the same numbers in another order may differ


@dataclass(frozen=True, kw_only=True)
class Combination:
    """One candidate per block, with the whole student's estimated costs.

    Attributes:
        choice: Index of the candidate, block by block.
        score: Sum over blocks.
        num_params: Of the whole student.
        num_flops: Likewise.
        latency_ms: Likewise.
    """

    choice: tuple[int, ...]
    score: float
    num_params: int
    num_flops: int
    latency_ms: float


@dataclass(frozen=True, kw_only=True)
class Cut:
    """Of some candidates of every block, at most so many may be taken together.

    Attributes:
        picks: Their indices, block by block.
        most: How many.
    """

    picks: tuple[frozenset[int], ...]
    most: int

    def forbids(self, choice: Sequence[int]) -> bool:
        """Whether a choice, or the first part of one, takes too many of them."""
        return sum(map(frozenset.__contains__, self.picks, choice)) > self.most


def other_than(choice: Sequence[int]) -> Cut:
    """The cut that forbids one choice."""
    return Cut(picks=tuple(frozenset([index]) for index in choice), most=len(choice) - 1)


def unlike(kinds: Sequence[Sequence[Hashable]], choice: Sequence[int], least: int) -> Cut:
    """The cut that asks for another kind of candidate in some blocks.

    Args:
        kinds: Of every block's candidates.
        choice: That the others are to be unlike.
        least: In how many blocks.
    """
    picks = tuple(
        frozenset(number for number, kind in enumerate(block) if kind == block[index])
        for block, index in zip(kinds, choice, strict=True)
    )
    return Cut(picks=picks, most=len(choice) - least)


def best(
    blocks: Sequence[Sequence[Candidate]],
    base: Candidate,
    limits: Mapping[str, float],
    cuts: Sequence[Cut] = (),
    *,
    count: int = 1,
    least: str = "score",
) -> list[Combination]:
    """The combinations with the best sums of scores, best first; fewer where no more are within the limits.

    Branch and bound, block by block. What a partial choice comes to at least is bounded by Lagrangian relaxation: the
    limits' multipliers, of the linear relaxation's dual, price the costs, so that every block by itself can take what
    is best for it. The bound holds for any multipliers, so that the result is exact whatever the linear solver gives.

    Args:
        blocks: The candidates of every block, each with the costs that it adds to the whole student.
        base: What the student costs without its cells; its score counts nothing.
        limits: On the whole student, by name out of COSTS.
        cuts: What it may not be.
        count: How many.
        least: What is made least, `score` or a name out of COSTS.
    """
    names = list(limits)
    room = [limits[name] - getattr(base, name) for name in names]
    goals = [[float(getattr(one, least)) for one in candidates] for candidates in blocks]
    costs = [[tuple(float(getattr(one, name)) for name in names) for one in candidates] for candidates in blocks]
    prices = _prices(goals, costs, room)
    bounds = [
        [goal + sum(map(mul, prices, cost)) for goal, cost in zip(*both, strict=True)]
        for both in zip(goals, costs, strict=True)
    ]
    orders = [sorted(range(len(one)), key=one.__getitem__) for one in bounds]
    # Of the blocks from each on: the least they are bounded by, and the least they cost.
    rest = list(accumulate((min(one) for one in reversed(bounds)), initial=0.0))[::-1]
    needed = list(
        accumulate(
            (tuple(map(min, zip(*one, strict=True))) for one in reversed(costs)),
            lambda a, b: tuple(map(add, a, b)),
            initial=(0.0,) * len(names),
        )
    )[::-1]
    paid = sum(map(mul, prices, room))
    found: list[tuple[float, tuple[int, ...]]] = []

    def descend(choice: tuple[int, ...], bound: float, goal: float, cost: tuple[float, ...]) -> None:
        block = len(choice)
        if block == len(blocks):
            whole = combine(blocks, base, choice)
            if all(getattr(whole, name) <= limit for name, limit in limits.items()):
                insort(found, (goal, choice))
                del found[count:]
            return
        for index in orders[block]:
            lowest = bound + bounds[block][index] + rest[block + 1] - paid
            if len(found) == count and lowest > found[-1][0] + _ROUNDING * abs(found[-1][0]):
                return
            spent = tuple(map(add, cost, costs[block][index]))
            if any(a + b > c + _ROUNDING * abs(c) for a, b, c in zip(spent, needed[block + 1], room, strict=True)):
                continue
            longer = (*choice, index)
            if any(cut.forbids(longer) for cut in cuts):
                continue
            descend(longer, bound + bounds[block][index], goal + goals[block][index], spent)

    descend((), 0.0, 0.0, (0.0,) * len(names))
    return [combine(blocks, base, choice) for _, choice in found]


def _prices(
    goals: Sequence[Sequence[float]], costs: Sequence[Sequence[tuple[float, ...]]], room: Sequence[float]
) -> list[float]:
    """Of every limit the multiplier: by how much the best sum falls where it is a unit looser."""
    if not room:
        return []
    flat = np.array([cost for block in costs for cost in block]).T
    sizes = np.maximum(np.abs(flat).max(axis=1), 1e-12)
    of_block = np.repeat(np.arange(len(goals)), [len(block) for block in goals])
    solved = linprog(
        np.concatenate([np.asarray(block) for block in goals]),
        A_ub=flat / sizes[:, None],
        b_ub=np.asarray(room) / sizes,
        A_eq=(of_block == np.arange(len(goals))[:, None]).astype(float),
        b_eq=np.ones(len(goals)),
        bounds=(0, 1),
    )
    if solved.status != 0:  # nothing may fit; then prices of 0 are as good as any
        return [0.0] * len(room)
    return np.maximum(0.0, -solved.ineqlin.marginals / sizes).tolist()


def combine(blocks: Sequence[Sequence[Candidate]], base: Candidate, choice: Sequence[int]) -> Combination:
    """What a choice adds up to."""
    picked = [candidates[index] for candidates, index in zip(blocks, choice, strict=True)]
    return Combination(
        choice=tuple(choice),
        score=sum(one.score for one in picked),
        num_params=base.num_params + sum(one.num_params for one in picked),
        num_flops=base.num_flops + sum(one.num_flops for one in picked),
        latency_ms=base.latency_ms + sum(one.latency_ms for one in picked),
    )


def nearest(
    blocks: Sequence[Sequence[Candidate]], base: Candidate, limits: Mapping[str, float]
) -> dict[str, Combination]:
    """Of every limit the combination with the least of its cost, the other limits kept where they can be."""
    found = {}
    for name in limits:
        others = {other: limit for other, limit in limits.items() if other != name}
        found[name] = (best(blocks, base, others, least=name) or best(blocks, base, {}, least=name))[0]
    return found
