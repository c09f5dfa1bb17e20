"""Random and uniform cells as dear as the searched ones: what a search has to beat. One row of BASELINES each."""

import logging
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from nni_bertnas.student.candidates import Candidate, no_layer
from nni_bertnas.student.cost import cell_call, count_params, measure_latency_ms
from nni_bertnas.student.runtimes import RUNTIMES
from search_space.cells import Architecture, Choice, build_body
from search_space.listing import Space

_log = logging.getLogger(__name__)
_TRIES = 500  # cells drawn for one block, at most
ATTEMPTS = 10  # whole students, where one repeats another or does not train

Cost = Callable[[Candidate], float]


def params_cost(hidden_size: int) -> Cost:
    """The parameters of a cell's body; what surrounds it is the same for all."""
    return _remember(lambda one: float(count_params(build_body(one.space, one.architecture, one.depth, hidden_size))))


def latency_cost(
    hidden_size: int, reference: Candidate, lengths: Sequence[int], threads: int = 1, runtime: str = "torch"
) -> Cost:
    """The latency of a cell's body in ms, each measured in turns with one reference, so that a drift cancels out.

    Args:
        hidden_size: Width.
        reference: Any cell.
        lengths: Real sequence lengths.
        threads: Of every pass.
        runtime: A name out of :data:`~nni_bertnas.student.runtimes.RUNTIMES`.
    """

    def call(one: Candidate) -> Any:
        body = build_body(one.space, one.architecture, one.depth, hidden_size)
        return RUNTIMES[runtime].compile(cell_call(body.eval(), hidden_size, lengths), threads)

    first = call(reference)
    first_ms = measure_latency_ms({"first": first}, lengths, threads=threads)["first"]

    def measure(one: Candidate) -> float:
        latency_ms = measure_latency_ms({"first": first, "other": call(one)}, lengths, threads=threads)
        return first_ms * latency_ms["other"] / latency_ms["first"]

    return _remember(measure)


def _remember(measure: Cost) -> Cost:
    known: dict[str, float] = {}

    def cost(one: Candidate) -> float:
        if str(one) not in known:
            known[str(one)] = measure(one)
        return known[str(one)]

    return cost


def sample_architecture(space: Space, generator: random.Random) -> Architecture:
    """One architecture, all equally probable."""
    return space.canonical({label: generator.choice(options) for label, options in space.choices.items()})


def uniform_architectures(space: Space) -> dict[str, Architecture]:
    """The cells with one operation everywhere, by operation: a plain chain of layers where inputs can be chosen.

    Of one input the last is taken, which is the layer before; of several the first; skips are left out.
    """

    def pick(options: Sequence[Choice], operation: str) -> Choice:
        if isinstance(options[0], list):
            return options[-1] if len(options[0]) == 1 else options[0]
        if tuple(options) == space.operations:
            return operation
        return next((name for name in ("zero", operation) if name in options), options[0])

    return {
        operation: space.canonical({label: pick(options, operation) for label, options in space.choices.items()})
        for operation in space.operations
    }


@dataclass(frozen=True, kw_only=True)
class Matching:
    """The searched cells, and what a baseline's must have in common with them.

    Attributes:
        spaces: Of every depth there may be.
        searched: The searched cell of every block.
        cost: In which they must match.
        tolerance: Share of the searched cell's cost by which a baseline's may differ.
        shared: Whether blocks that share an architecture must share one here, too.
        seed: Of all draws.
    """

    spaces: Mapping[int, Space]
    searched: Sequence[Candidate]
    cost: Cost
    tolerance: float
    shared: bool
    seed: int

    @cached_property
    def targets(self) -> list[float]:
        """The costs of the searched cells."""
        return [self.cost(one) for one in self.searched]

    def ratio(self, cells: Sequence[Candidate]) -> float:
        """The cost of all cells together over that of the searched ones."""
        return _ratio(sum(map(self.cost, cells)), sum(self.targets))

    def ratios(self, cells: Sequence[Candidate]) -> list[float]:
        """The cost of every cell over that of its block's searched one."""
        return [_ratio(self.cost(one), target) for one, target in zip(cells, self.targets, strict=True)]

    def candidate(self, depth: int, architecture: Architecture) -> Candidate:
        """A cell of one of the spaces."""
        return Candidate(space=self.spaces[depth].name, depth=depth, architecture=architecture)


def _ratio(value: float, target: float) -> float:
    return value / target if target else float(value == target)


def random_cell(match: Matching, block: int, seed: int | str, tries: int = _TRIES) -> Candidate:
    """A random cell within the tolerance of a block's searched one.

    Its depth, then its architecture, are drawn uniformly and drawn again until it fits; the searched cell itself is
    not taken unless nothing else is drawn.

    Args:
        match: What it must match.
        block: Whose searched cell.
        seed: Of the draws.
        tries: Draws; then the one nearest in cost is taken.
    """
    generator = random.Random(seed)
    avoid, target = match.searched[block], match.targets[block]
    nearest, distance = avoid, float("inf")
    for _ in range(tries):
        depth = generator.choice(list(match.spaces))
        drawn = match.candidate(depth, sample_architecture(match.spaces[depth], generator))
        if str(drawn) == str(avoid):
            continue
        off = abs(_ratio(match.cost(drawn), target) - 1)
        if off < distance:
            nearest, distance = drawn, off
        if off <= match.tolerance:
            return drawn
    _log.warning("none of %d random cells is within %.0f %% of the cost wanted; %s has %.2f times as much",
                 tries, 100 * match.tolerance, nearest, _ratio(match.cost(nearest), target))  # fmt: skip
    return match.candidate(nearest.depth, nearest.architecture)


def random_students(match: Matching, number: int) -> Iterator[list[Candidate]]:
    """Students of random cells, each block's as dear as the searched one; unlike those of the numbers before."""
    taken: list[str] = []
    for earlier in range(number):
        taken.append(str(next(_unlike(match, earlier, taken))))
    return _unlike(match, number, taken)


def _unlike(match: Matching, number: int, taken: Sequence[str]) -> Iterator[list[Candidate]]:
    for attempt in range(ATTEMPTS):
        cells = _draw(match, f"{match.seed}/{number}/{attempt}")
        # In a small space students may have to repeat.
        if attempt == ATTEMPTS - 1 or str(cells) not in taken:
            yield cells


def _draw(match: Matching, seed: str) -> list[Candidate]:
    drawn: dict[str, Candidate] = {}
    cells = []
    for block, searched in enumerate(match.searched):
        if not searched.depth:  # there is but one of no layer
            cells.append(no_layer())
            continue
        key = str(searched) if match.shared else str(block)  # what the search had to share is shared here
        if key not in drawn:
            drawn[key] = random_cell(match, block, f"{seed}/{block}")
        cells.append(drawn[key])
    return cells


def uniform_students(match: Matching, number: int) -> Iterator[list[Candidate]]:
    """Students of one operation everywhere, the nearest in cost over all blocks first; the first `number` are left out.

    They have the searched depths, or one depth in all blocks.
    """
    own = tuple(one.depth for one in match.searched)
    found = []
    for depths in dict.fromkeys([own, *((depth,) * len(own) for depth in match.spaces)]):
        every = [uniform_architectures(match.spaces[depth]) if depth else {} for depth in depths]
        for operation in next(iter(match.spaces.values())).operations:
            cells = zip(depths, every, strict=True)
            found.append([match.candidate(depth, one[operation]) if depth else no_layer() for depth, one in cells])
    searched = [str(one) for one in match.searched]
    others = [cells for cells in found if [str(one) for one in cells] != searched]
    yield from sorted(others, key=lambda cells: abs(match.ratio(cells) - 1))[number:]


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """One kind of baseline.

    Attributes:
        students: Takes what is to be matched and a number; gives the cells of that student, block by block, then
            others, for where these do not train.
        by_block: Whether every cell must match in cost, and not only all together.
    """

    students: Callable[[Matching, int], Iterator[list[Candidate]]]
    by_block: bool


BASELINES: Mapping[str, Baseline] = {
    "random": Baseline(students=random_students, by_block=True),
    "uniform": Baseline(students=uniform_students, by_block=False),
}
