"""What a finished block phase can answer: which cells make the best student within a budget, and at which cost."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf, nextafter

from torch import nn

from nni_bertnas.config import BudgetSettings
from nni_bertnas.errors import PhaseError
from nni_bertnas.stages.cells import load_ranked, operation_parts
from nni_bertnas.stages.run import Run
from nni_bertnas.stages.students import StudentMaker
from nni_bertnas.student.build import new_student
from nni_bertnas.student.candidates import Candidate, kind_of, no_layer
from nni_bertnas.student.cost import cell_call, count_flops, count_params
from nni_bertnas.student.latency import GRID, LatencyTable, OtherWork, Part, cell_parts, link_part, model_part
from nni_bertnas.student.selection import Combination, Cut, best, combine, nearest, other_than, unlike

Chosen = tuple[Combination, list[Candidate]]
PARAMETER_BYTES = 4  # in the saved file
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Prices:
    """What every candidate would add to a student.

    Attributes:
        blocks: Every block's candidates, without their cells.
        base: What a student costs without any.
        teacher_ms: Latency of the teacher at batch 1.
        bag: The student without any layer, as a whole: it has no cells at all, and costs less than the sum of its
            parts; None where some block has no such candidate.
    """

    blocks: list[list[Candidate]]
    base: Candidate
    teacher_ms: float
    bag: Combination | None = None

    @classmethod
    def measure(
        cls,
        maker: StudentMaker,
        blocks: Sequence[Sequence[Candidate]],
        table: LatencyTable | None = None,
        *,
        in_turns: bool = False,
    ) -> "Prices":
        """Of candidates with their cells.

        What was measured in trials that ran at the same time as others cannot be compared, and is not looked at. What
        cells take together, more than each by itself, is learnt from the student of the deepest candidates as a whole.

        Args:
            maker: Builds students.
            blocks: Every block's candidates.
            table: Of latencies; None: the machine's at batch 1.
            in_turns: Whether the teacher is timed now, in turns with the student of the deepest candidates. The table
                has it as it was on another day, and what drifts between takes students, which are many small
                operations, otherwise than teachers. Where much else runs meanwhile, the table's counts.
        """
        table = table or maker.run.latencies
        parts, counted, base = _costs(maker, blocks, table.batch)
        bare = tuple(next((n for n, one in enumerate(block) if not one.depth), -1) for block in blocks)
        if -1 not in bare:
            student = maker.new_student([block[n] for block, n in zip(blocks, bare, strict=True)]).fused()
            parts["bag"] = [maker.part(student, table.batch)]
        deepest = [max(range(len(block)), key=lambda n: block[n].depth) for block in blocks]
        layered = maker.new_student([block[n] for block, n in zip(blocks, deepest, strict=True)]).fused()
        parts["deepest"] = [maker.part(layered, table.batch)]
        latency_ms = table.latency_ms(parts, maker.lengths)
        alone = sum(latency_ms[f"{block}.{n}"] for block, n in enumerate(deepest))
        share = max(0.0, latency_ms["deepest"] - latency_ms["base"]) / alone if alone else 1.0
        timed = [
            [replace(one, latency_ms=share * latency_ms[f"{block}.{index}"]) for index, one in enumerate(candidates)]
            for block, candidates in enumerate(counted)
        ]
        base = replace(base, latency_ms=latency_ms["base"])
        bag = None
        if -1 not in bare:
            bag = replace(
                combine(timed, base, bare),
                num_params=count_params(student),
                num_flops=count_flops(maker.call(student), maker.middle),
                latency_ms=latency_ms["bag"],
            )
        teacher_ms = latency_ms["teacher"]
        if in_turns:
            watch, now = OtherWork(), maker.latency_ms(layered)
            if not watch.much():
                teacher_ms = latency_ms["deepest"] * now["teacher"] / now["student"]
        return cls(blocks=timed, base=base, teacher_ms=teacher_ms, bag=bag)

    @classmethod
    def for_budget(cls, maker: StudentMaker, blocks: Sequence[Sequence[Candidate]]) -> "Prices":
        """By which the study's budget is kept."""
        return cls.measure(maker, blocks, in_turns=maker.run.study.supernet.budget.min_speedup is not None)

    def best(self, budget: BudgetSettings, cuts: Sequence[Cut] = (), correction: float = 1.0) -> Combination | None:
        """The combination with the best sum of scores within a budget; None where there is none.

        Args:
            budget: Of the whole student.
            cuts: What it may not be.
            correction: By how much students are slower than the sum of their parts.
        """
        limits = self.limits(budget)
        layered = {name: limit / correction if name == "latency_ms" else limit for name, limit in limits.items()}
        if self.bag is None:
            return next(iter(best(self.blocks, self.base, layered, cuts)), None)
        bare = self.bag.choice
        options = best(self.blocks, self.base, layered, [*cuts, other_than(bare)])
        fits = all(getattr(self.bag, name) <= limit for name, limit in limits.items())
        if fits and not any(cut.forbids(bare) for cut in cuts):
            options.append(self.bag)
        return min(options, key=lambda one: one.score, default=None)

    def limits(self, budget: BudgetSettings) -> dict[str, float]:
        """What a student may cost, by name out of COSTS."""
        size = budget.max_size_mb and budget.max_size_mb * 1e6 // PARAMETER_BYTES
        speed = budget.min_speedup and self.teacher_ms / budget.min_speedup
        wanted = {
            "num_params": (budget.max_params, size),
            "num_flops": (budget.max_flops,),
            "latency_ms": (budget.max_latency_ms, speed),
        }
        least = {name: min((limit for limit in limits if limit), default=inf) for name, limits in wanted.items()}
        return {name: limit for name, limit in least.items() if limit < inf}

    def impossible(self, budget: BudgetSettings) -> str:
        """Why nothing is within a budget: of every limit the nearest that can be."""
        limits, units = self.limits(budget), {"num_params": "parameters", "num_flops": "FLOPs", "latency_ms": "ms"}
        least = {name: getattr(one, name) for name, one in nearest(self.blocks, self.base, limits).items()}
        if self.bag is not None:
            least = {name: min(value, getattr(self.bag, name)) for name, value in least.items()}
        parts = [
            f"at most {limits[name]:,.6g} {units[name]} are wanted, {value:,.6g} is the least"
            for name, value in least.items()
        ]
        return (
            f"no combination fits supernet.budget: {'; '.join(parts)} (the teacher takes {self.teacher_ms:.2f} ms); "
            "loosen the budget, lower student.hidden_size or embedding_size, or search smaller cell.depths"
        )

    def front(self, cost: str) -> list[Combination]:
        """All combinations that no other beats in both score and a cost, the best score first.

        Args:
            cost: A name out of COSTS.
        """
        found: list[Combination] = []
        limit = inf
        while more := best(self.blocks, self.base, {} if limit == inf else {cost: limit}):
            if found and found[-1].score == more[0].score:
                found.pop()
            found += more
            limit = nextafter(getattr(more[0], cost), -inf)
        if self.bag is not None:  # as it was measured, not as the sum of its parts
            bag, own = self.bag, getattr(self.bag, cost)
            others = [one for one in found if one.choice != bag.choice]
            found = [one for one in others if one.score < bag.score or getattr(one, cost) < own]
            if not any(one.score <= bag.score and getattr(one, cost) <= own for one in found):
                found.append(bag)
        return sorted(found, key=lambda one: one.score)


def open_prices(run: Run) -> Prices:
    """Those of a finished block phase's candidates.

    Raises:
        PhaseError: The block phase is not finished.
    """
    return Prices.measure(StudentMaker(run, run.study.seed), load_ranked(run), in_turns=True)


def choose(maker: StudentMaker, blocks: Sequence[Sequence[Candidate]], count: int) -> list[Chosen]:
    """The best combinations whose students, built and measured, are within the budget, no two alike.

    The first has the best sum of scores; the next the best of those that differ from all before in two blocks, by the
    kinds of their operations; where there are too few, in one block. Every second takes at most half the latency of
    the first, where there are such: small tasks are often learnt better by fewer layers than the budget has room for.

    Args:
        maker: Builds students and measures.
        blocks: Every block's candidates with their cells.
        count: How many at most.

    Raises:
        PhaseError: Nothing fits; with the nearest that can be, limit by limit.
    """
    whole, prices = maker.run.study.supernet.budget, Prices.for_budget(maker, blocks)
    kinds = [[kind_of(one.architecture) for one in candidates] for candidates in blocks]
    correction = 1.0  # measured over estimated, learnt from the combinations that turned out too slow
    found: list[Chosen] = []
    fastest = inf  # of those

    def add(budget: BudgetSettings, most: int) -> None:
        nonlocal correction, fastest
        refused: list[Cut] = []
        for least in range(min(2, len(blocks)), 0, -1):
            while len(found) < most:
                cuts = [*refused, *(unlike(kinds, other.choice, least) for other, _ in found)]
                combination = prices.best(budget, cuts, correction)
                if combination is None:
                    break
                picked = [candidates[index] for candidates, index in zip(blocks, combination.choice, strict=True)]
                measured, quiet = _measure(maker, maker.new_student(picked).fused(), prices)
                if not quiet or measured <= prices.limits(budget).get("latency_ms", inf):
                    found.append((combination, picked))
                    continue
                refused.append(other_than(combination.choice))
                fastest = min(fastest, measured)
                if any(one.depth for one in picked):
                    correction = max(correction, measured / combination.latency_ms)
                _log.info("%s takes %.2f ms, %.2f estimated", combination.choice, measured, combination.latency_ms)

    add(whole, -(-count // 2))
    if not found and fastest < inf:
        raise PhaseError(
            f"what fits supernet.budget by its parts takes {fastest:.3g} ms as a whole, and at most "
            f"{prices.limits(whole)['latency_ms']:.3g} are wanted (the teacher takes {prices.teacher_ms:.2f} ms); "
            "loosen the budget, or lower student.hidden_size or embedding_size"
        )
    if not found:
        raise PhaseError(prices.impossible(whole))
    if count > 1:
        half = found[0][0].latency_ms / 2
        add(replace(whole, max_latency_ms=min(half, whole.max_latency_ms or half)), count)
        add(whole, count)
    return found


def _measure(maker: StudentMaker, student: nn.Module, prices: Prices) -> tuple[float, bool]:
    """Milliseconds of a whole student by the clock of the table of latencies, and whether nothing else ran meanwhile.

    Where a speed-up is asked for, it is timed in turns with the teacher, as the prices are.
    """
    if not maker.run.study.supernet.budget.min_speedup:
        table = maker.run.latencies
        return table.latency_ms({"student": [maker.part(student)]}, maker.lengths)["student"], table.quiet
    watch = OtherWork()
    now = maker.latency_ms(student)
    return prices.teacher_ms * now["student"] / now["teacher"], not watch.much()


def _costs(
    maker: StudentMaker, blocks: Sequence[Sequence[Candidate]], batch: int
) -> tuple[dict[str, list[Part]], list[list[Candidate]], Candidate]:
    """What is timed, and what is counted.

    Returns:
        Parts of the teacher, of a student without layers, and of every cell; every block's candidates with what they
        add; what the student without layers has.
    """
    width, middle, sides = maker.run.study.student.hidden_size, maker.middle, 1 + (maker.shape.encoding == "separate")
    nothing = no_layer()
    empty = new_student(maker.shape, maker.start_of_students, [nothing for _ in blocks]).fused()
    parts = {"teacher": [maker.part(maker.teacher, batch)], "base": [maker.part(empty, batch)]}
    costs: list[list[Candidate]] = [[] for _ in blocks]
    for block, candidates in enumerate(blocks):
        for index, one in enumerate(candidates):
            own, body = cell_parts(one, width, sides=sides, batch=batch), one.trained.body
            call = cell_call(body, width, [middle], sides=sides)
            num_params, num_flops = count_params(body), count_flops(call, middle)
            # Behind a block with a layer a map leads into the next, but for the last; all other maps fuse.
            if one.depth and block + 1 < len(blocks) and isinstance(one.trained.into, nn.Linear):
                own.append(link_part(width, sides=sides, batch=batch))
                num_params += width * width + width
                num_flops += 2 * sides * -(-middle // sides) * width * width
            parts[f"{block}.{index}"] = own
            score = worth(maker.run, one)
            costs[block].append(replace(one, score=score, num_params=num_params, num_flops=num_flops, cell=None))
    base = replace(nothing, num_params=count_params(empty), num_flops=count_flops(maker.call(empty), middle))
    return parts, costs, base


def worth(run: Run, one: Candidate) -> float:
    """The score by which candidates are combined.

    Raises:
        PhaseError: It was not measured.
    """
    if run.study.supernet.score == "local":
        return one.score
    if one.replaced is None:
        raise PhaseError(
            "supernet.score: the candidates have no replaced score; set block.replaced_rows above 0 and run the block "
            "phase again, or set local (the layers of some teachers, as ALBERT, cannot be replaced)"
        )
    return one.replaced


def profile(run: Run, batch: int) -> tuple[LatencyTable, dict[str, Part]]:
    """Measure all that students of a study are made of, at all lengths that they read.

    Args:
        run: Of the study; its features are made.
        batch: Rows of a pass.

    Returns:
        The table, and the parts by how they are called: the operations, and what every student has.
    """
    maker, width = StudentMaker(run, run.study.seed), run.study.student.hidden_size
    table = run.latency_table(batch)
    sides, pairs = 1 + (maker.shape.encoding == "separate"), run.train.has_pairs
    nothing, start = [no_layer() for _ in range(run.num_blocks)], maker.start_of_students
    models = {
        "teacher": maker.teacher,
        "student without layers": new_student(maker.shape, start, nothing).fused(),
        "student without cells": new_student(maker.shape, start, maker.layered(nothing)).fused(),
    }
    parts = {name: model_part(model, pairs=pairs, batch=batch) for name, model in models.items()}
    parts["map between blocks"] = link_part(width, sides=sides, batch=batch)
    parts |= operation_parts(run, batch)
    grid = [length for length in GRID if length <= start.places] or [GRID[0]]
    table.measure(list(parts.values()), grid)
    return table, parts
