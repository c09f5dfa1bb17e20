"""Random and uniform cells as dear as the searched ones: what a search has to beat.

The first part are plain functions over architectures; the second draws a whole student for a study and trains its
cells just as long as the searched ones were.
"""

import logging
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from nni_bertnas.config import BaselineConfig, Study
from nni_bertnas.errors import CandidateError, ConfigError, PhaseError
from nni_bertnas.search.strategies import ONE_SHOT
from nni_bertnas.student.cost import cell_call, count_params, measure_latency_ms
from search_space.cells import (
    Architecture,
    Cell,
    Choice,
    build_body,
    build_cell,
    find_space,
    list_choices,
    space_operations,
    spell,
)

if TYPE_CHECKING:
    from nni_bertnas.store.reader import FeatureStore

_log = logging.getLogger(__name__)
SEARCHED, UNIFORM = "searched", "uniform"
_TRIES = 500  # cells drawn for one block, at most
_ATTEMPTS = 10  # whole students, where one repeats another or does not train
_LATENCY_ROWS = 20

Cost = Callable[[int, Architecture], float]  # takes depth and architecture


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A cell, with its cost over the cost that was wanted."""

    depth: int
    architecture: Architecture
    cost: float
    ratio: float


def params_cost(space: str, hidden_size: int) -> Cost:
    """The parameters of a cell's body; what surrounds it is the same for all."""
    return _remember(
        lambda depth, architecture: float(count_params(build_body(space, architecture, depth, hidden_size)))
    )


def latency_cost(
    space: str, hidden_size: int, reference: tuple[int, Architecture], lengths: Sequence[int], threads: int = 1
) -> Cost:
    """The latency of a cell's body in ms, each measured in turns with one reference, so that a drift cancels out.

    Args:
        space: Kind of cell.
        hidden_size: Width.
        reference: Depth and architecture of a cell.
        lengths: Real sequence lengths.
        threads: Of every pass.
    """

    def call(depth: int, architecture: Architecture) -> Any:
        return cell_call(build_body(space, architecture, depth, hidden_size).eval(), hidden_size, lengths)

    first = call(*reference)
    first_ms = measure_latency_ms({"first": first}, lengths, threads=threads)["first"]

    def measure(depth: int, architecture: Architecture) -> float:
        both = {"first": first, "other": call(depth, architecture)}
        latency_ms = measure_latency_ms(both, lengths, threads=threads)
        return first_ms * latency_ms["other"] / latency_ms["first"]

    return _remember(measure)


def _remember(measure: Cost) -> Cost:
    known: dict[tuple[int, str], float] = {}

    def cost(depth: int, architecture: Architecture) -> float:
        key = depth, spell(architecture)
        if key not in known:
            known[key] = measure(depth, architecture)
        return known[key]

    return cost


def sample_architecture(choices: Mapping[str, Sequence[Choice]], space: str, generator: random.Random) -> Architecture:
    """One architecture, all equally probable.

    Args:
        choices: What `list_choices` gives for the space.
        space: Kind of cell.
        generator: Where chance comes from.
    """
    return find_space(space).canonical({label: generator.choice(options) for label, options in choices.items()})


def random_architecture(
    space: str,
    depths: Sequence[int],
    operations: Sequence[str],
    hidden_size: int,
    *,
    cost: Cost,
    target: float,
    tolerance: float,
    seed: int | str,
    avoid: tuple[int, Architecture] | None = None,
    tries: int = _TRIES,
) -> Drawn:
    """A random cell within a share of a cost: depth, then architecture, drawn uniformly and drawn again until it fits.

    Args:
        space: Kind of cell.
        depths: To choose from.
        operations: To choose from.
        hidden_size: Width.
        cost: Of a cell.
        target: The cost that is wanted.
        tolerance: Share of the target by which it may differ.
        seed: Of the draws.
        avoid: Depth and architecture that are not taken unless nothing else is drawn.
        tries: Draws; then the one nearest in cost is taken.
    """
    generator = random.Random(seed)
    choices = {depth: list_choices(space, depth, operations, hidden_size) for depth in depths}
    nearest: Drawn | None = None
    for _ in range(tries):
        depth = generator.choice(list(depths))
        architecture = sample_architecture(choices[depth], space, generator)
        if avoid is not None and (depth, dict(architecture)) == (avoid[0], dict(avoid[1])):
            continue
        value = cost(depth, architecture)
        drawn = Drawn(depth=depth, architecture=architecture, cost=value, ratio=_ratio(value, target))
        if nearest is None or abs(drawn.ratio - 1) < abs(nearest.ratio - 1):
            nearest = drawn
        if abs(drawn.ratio - 1) <= tolerance:
            return drawn
    if nearest is None:
        assert avoid is not None
        value = cost(*avoid)
        nearest = Drawn(depth=avoid[0], architecture=avoid[1], cost=value, ratio=_ratio(value, target))
    _log.warning("none of %d random cells is within %.0f %% of the cost wanted; %s has %.2f times as much",
                 tries, 100 * tolerance, spell(nearest.architecture), nearest.ratio)  # fmt: skip
    return nearest


def _ratio(value: float, target: float) -> float:
    return value / target if target else float(value == target)


def uniform_architectures(
    space: str, depth: int, operations: Sequence[str], hidden_size: int
) -> dict[str, Architecture]:
    """The cells with one operation everywhere, by operation: a plain chain of layers where inputs can be chosen.

    Of one input the last is taken, which is the layer before; of several the first; skips are left out.
    """
    choices = list_choices(space, depth, operations, hidden_size)

    def pick(options: Sequence[Choice], operation: str) -> Choice:
        if isinstance(options[0], list):
            return options[-1] if len(options[0]) == 1 else options[0]
        if list(options) == list(operations):
            return operation
        return next((name for name in ("zero", operation) if name in options), options[0])

    return {
        operation: find_space(space).canonical({label: pick(options, operation) for label, options in choices.items()})
        for operation in operations
    }


# --- of a study -------------------------------------------------------------------------------------------------


def student_names(config: BaselineConfig) -> list[str]:
    """The searched student and the baselines that a study asks for."""
    return [SEARCHED, *(f"random_{number}" for number in range(config.random)), *([UNIFORM] if config.uniform else [])]


def check_name(student: str) -> None:
    """Whether there can be such a student.

    Raises:
        ConfigError: There cannot.
    """
    if not re.fullmatch(rf"{SEARCHED}|{UNIFORM}|random_\d+", student):
        raise ConfigError(
            f"student must be {SEARCHED}, random_NUMBER or {UNIFORM}, got {student!r}; correct student in the NNI "
            "search space"
        )


class Baselines:
    """Draws the students that a searched one is compared with.

    Args:
        study: The study.
        searched: The searched student's cell of every block: space, depth, architecture.
        lengths: Real sequence lengths, for latency.
    """

    def __init__(self, study: Study, searched: Sequence[Mapping[str, Any]], lengths: Sequence[int]) -> None:
        self.study = study
        self.space, self.width = study.cell.space, study.student.hidden_size
        self.operations = space_operations(self.space, self.width, study.cell.operations)
        self.searched = [(int(one["depth"]), dict(one["architecture"])) for one in searched]
        self.cost: Cost = (
            params_cost(self.space, self.width)
            if study.baseline.match == "num_params"
            else latency_cost(
                self.space, self.width, self.searched[0], lengths[:_LATENCY_ROWS], study.supernet.latency_threads
            )
        )
        self.targets = [self.cost(depth, architecture) for depth, architecture in self.searched]

    def students(self, name: str) -> Iterator[list[Drawn]]:
        """The cells of one baseline, block by block; then others, for where these do not train."""
        if name == UNIFORM:
            return iter(self._uniform())
        taken: list[list[Drawn]] = []
        number = int(name.removeprefix("random_"))
        for earlier in range(number):
            taken.append(next(self._random(earlier, taken)))
        return self._random(number, taken)

    def _random(self, number: int, taken: list[list[Drawn]]) -> Iterator[list[Drawn]]:
        for attempt in range(_ATTEMPTS):
            cells = self._draw(f"{self.study.seed}/{number}/{attempt}")
            # In a small space students may have to repeat.
            if attempt == _ATTEMPTS - 1 or _plain(cells) not in [_plain(one) for one in taken]:
                yield cells

    def _draw(self, seed: str) -> list[Drawn]:
        shared: dict[tuple[int, str], Drawn] = {}
        cells = []
        for block, ((depth, architecture), target) in enumerate(zip(self.searched, self.targets, strict=True)):
            key = depth, spell(architecture)
            drawn = shared.get(key) if self.study.cell.shared else None  # what the search had to share is shared here
            if drawn is None:
                drawn = shared[key] = random_architecture(
                    self.space, self.study.cell.depths, self.operations, self.width, cost=self.cost, target=target,
                    tolerance=self.study.baseline.tolerance, seed=f"{seed}/{block}", avoid=(depth, architecture),
                )  # fmt: skip
            cells.append(drawn)
        return cells

    def _uniform(self) -> list[list[Drawn]]:
        """All uniform students, the nearest in cost first: of the searched depths, and of one depth in all blocks."""
        own = [depth for depth, _ in self.searched]
        options = {tuple(own): None, **{(depth,) * len(own): None for depth in self.study.cell.depths}}
        found = []
        for depths in options:
            every = [uniform_architectures(self.space, depth, self.operations, self.width) for depth in depths]
            for operation in self.operations:
                parts = [(depth, one[operation]) for depth, one in zip(depths, every, strict=True)]
                costs = [self.cost(depth, architecture) for depth, architecture in parts]
                found.append(
                    [
                        Drawn(depth=depth, architecture=architecture, cost=value, ratio=_ratio(value, target))
                        for (depth, architecture), value, target in zip(parts, costs, self.targets, strict=True)
                    ]
                )
        searched = [(depth, spell(architecture)) for depth, architecture in self.searched]
        return sorted(found, key=lambda cells: (_plain(cells) == searched, abs(self.ratio(cells) - 1)))

    def ratio(self, cells: Sequence[Drawn]) -> float:
        """The cost of all cells together over that of the searched ones."""
        return _ratio(sum(one.cost for one in cells), sum(self.targets))

    def facts(self, name: str, cells: Sequence[Drawn]) -> dict[str, Any]:
        """What the result says about the match."""
        ratios = [self.ratio(cells)] if name == UNIFORM else [one.ratio for one in cells]
        return {
            "match": self.study.baseline.match,
            "searched": self.targets,
            "own": [one.cost for one in cells],
            "ratio": self.ratio(cells),
            "within_tolerance": all(abs(ratio - 1) <= self.study.baseline.tolerance for ratio in ratios),
        }


def _plain(cells: Sequence[Drawn]) -> list[tuple[int, str]]:
    return [(one.depth, spell(one.architecture)) for one in cells]


def train_student(
    baselines: Baselines, name: str, train: "FeatureStore", dev: "FeatureStore"
) -> tuple[list[Drawn], list[Cell], list[float]]:
    """Draw a baseline and train its cells from fresh weights.

    Returns:
        Of every block what was drawn, the trained cell in eval mode, and its block score.

    Raises:
        PhaseError: Several were drawn, and none could be trained.
    """
    for _, drawn in zip(range(_ATTEMPTS), baselines.students(name), strict=False):
        try:
            return drawn, *train_cells(baselines.study, drawn, train, dev)
        except CandidateError as error:
            _log.warning("%s, %s: %s", name, _plain(drawn), error)
    raise PhaseError(f"no cells of {name} could be trained; see the log and lower cell.learning_rate")


def train_cells(
    study: Study, drawn: Sequence[Drawn], train: "FeatureStore", dev: "FeatureStore"
) -> tuple[list[Cell], list[float]]:
    """Train cells from fresh weights with the cell phase's settings and then the block phase's, for as many epochs.

    A one-shot search trains a candidate in the supernet and then alone, so that both numbers of epochs count here.

    Returns:
        The cells in eval mode, and their block scores.

    Raises:
        CandidateError: One did not train.
    """
    from nni_bertnas.search.evaluator import DistillationEvaluator
    from nni_bertnas.training.trainer import pl

    width, edges, blocks = study.student.hidden_size, train.edges, list(range(len(drawn)))
    cells: list[Cell] = []
    scores: list[float] = []
    make = partial(DistillationEvaluator, train=train, dev=dev, precision=study.student.precision)
    config = study.cell
    epochs = config.epochs + (config.candidate_epochs if config.strategy in ONE_SHOT else 0)
    for group in [blocks] if config.shared else [[block] for block in blocks]:
        seed = study.seed + 1000 * group[0] + drawn[group[0]].depth  # as a search of this block and depth has
        pl.seed_everything(seed, verbose=False)
        own = [
            build_cell(config.space, drawn[block].architecture, drawn[block].depth, train.hidden_size, width)
            for block in group
        ]
        evaluator = make(
            edges=edges[group[0] : group[-1] + 2], epochs=epochs, batch_size=config.batch_size,
            learning_rate=config.learning_rate, weight_decay=config.weight_decay, gradient_clip=config.gradient_clip,
            max_rows=config.max_rows, seed=seed,
        )  # fmt: skip
        evaluator.start_maps(own)
        evaluator.fit_cells(own, epochs)
        cells += own
    for block, cell in enumerate(cells):
        seed = study.seed + 1000 * block
        pl.seed_everything(seed, verbose=False)
        evaluator = make(
            edges=edges[block : block + 2], epochs=study.block.epochs, batch_size=study.block.batch_size,
            learning_rate=study.block.learning_rate, weight_decay=study.block.weight_decay,
            optimizer=study.block.optimizer, seed=seed,
        )  # fmt: skip
        if study.starts_fresh(len(train.rows)):
            cell = cells[block] = build_cell(
                config.space, drawn[block].architecture, drawn[block].depth, train.hidden_size, width
            )
            evaluator.start_maps([cell])
        scores += evaluator.fit_cells([cell.train()], study.block.epochs)
    return [cell.eval() for cell in cells], scores
