"""Stage supernet, phase 3: choose one candidate per block, chain them, train the student end to end, save it."""

import logging
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from nni_bertnas.artifacts import fingerprint
from nni_bertnas.config import to_dict
from nni_bertnas.errors import PhaseError
from nni_bertnas.search.shapes import search_shapes, shape_name
from nni_bertnas.stages.cells import load_ranked, read_rankings
from nni_bertnas.stages.run import Result, Run, Unit
from nni_bertnas.stages.stage import Stage, load, stage_fingerprint
from nni_bertnas.stages.students import FIDELITY, STUDENT, StudentMaker, describe, metrics
from nni_bertnas.student.build import new_student
from nni_bertnas.student.candidates import Candidate, kind_of, no_layer
from nni_bertnas.student.cost import Call, cell_call, count_params
from nni_bertnas.student.selection import Combination, combinations
from nni_bertnas.tracking import Tracker
from search_space.cells import spell

_log = logging.getLogger(__name__)
SEARCHED = "searched"
BAG = "bag"
Chosen = tuple[Combination, list[Candidate]]


def _fingerprint(run: Run, unit: Unit) -> str:
    study = run.study
    parts = [to_dict(part) for part in (*run.shapes, study.supernet, study.distill)]
    made = [stage_fingerprint(run, name) for name in ("augment", "pairs", "corrupt") if load(name).units(run)]
    general = [stage_fingerprint(run, "general"), to_dict(study.general)] if run.general_rows else []
    blocks = [ranking["fingerprint"] for ranking in read_rankings(run)]
    return fingerprint(blocks, unit["seed"], parts, made, study.augment.copies, general)


def _make(run: Run, unit: Unit, folder: Path, tracker: Tracker) -> Result:
    maker = StudentMaker(run, unit["seed"])
    blocks = load_ranked(run)
    made: Result = {}
    if len(run.shapes) > 1:
        _, first = choose(maker, blocks, 1)[0]
        config, inner = maker.new_student(first).config, run.nni / "inner"
        made["shapes"] = search_shapes(run.shapes, config, lambda shape: -maker.judge(first, shape), inner)
        maker.shape = max(run.shapes, key=lambda shape: made["shapes"][shape_name(shape)])
    chosen, candidates = _final(maker, choose(maker, blocks, run.study.supernet.finalists), made)
    result = maker.train(candidates, SEARCHED, folder / SEARCHED, tracker)
    kept = SEARCHED
    if run.study.supernet.bag and run.shape.static_path and any(one.depth for one in candidates):
        width = run.train.hidden_size, run.study.student.hidden_size
        bag = maker.train([no_layer().fresh(*width) for _ in blocks], BAG, folder / BAG, Tracker())
        both = {SEARCHED: result, BAG: bag}
        sides = {name: {**one["student"], FIDELITY: one[FIDELITY]} for name, one in both.items()}
        if bag[FIDELITY] <= result[FIDELITY]:  # layers have to earn their latency
            kept, result = BAG, bag
        result = {**result, "student_kind": SEARCHED, "compared": sides}
    (folder / kept / STUDENT).rename(folder / STUDENT)
    for name in (SEARCHED, BAG):
        shutil.rmtree(folder / name, ignore_errors=True)
    return {"selection": asdict(chosen), "kept": kept, **made, **result}


def _final(maker: StudentMaker, finalists: Sequence[Chosen], made: Result) -> Chosen:
    """The one of the finalists that comes nearest to the teacher after a short training.

    Args:
        maker: Of students.
        finalists: At least one.
        made: Is told what was tried, where there is more than one.
    """
    if len(finalists) == 1:
        return finalists[0]
    errors = [maker.judge(candidates) for _, candidates in finalists]
    made["finalists"] = [
        {"cells": [spell(one.architecture) for one in candidates], "score": combination.score, FIDELITY: error}
        for (combination, candidates), error in zip(finalists, errors, strict=True)
    ]
    return finalists[errors.index(min(errors))]


def choose(maker: StudentMaker, blocks: Sequence[Sequence[Candidate]], count: int) -> list[Chosen]:
    """The best combinations whose students, built and measured, are within the budget, no two alike.

    The first has the best sum of scores; the next the best of those that differ from all before in two blocks, by the
    kinds of their operations; where there are too few, in one block.

    Candidates are measured here side by side with the teacher, as what was measured in trials that ran at the same
    time as others cannot be compared.

    Args:
        maker: Builds students and measures.
        blocks: Every block's candidates with their cells.
        count: How many at most.

    Raises:
        PhaseError: Nothing fits.
    """
    budget = maker.run.study.supernet.budget
    calls, base = _calls(maker, blocks)
    latency_ms = maker.latency_ms(calls)
    costs = [
        [
            replace(
                one, num_params=count_params(one.trained.body), latency_ms=latency_ms[f"{block}.{index}"], cell=None
            )
            for index, one in enumerate(candidates)
        ]
        for block, candidates in enumerate(blocks)
    ]
    base = replace(base, latency_ms=latency_ms["base"])
    limits = [budget.max_latency_ms, budget.min_speedup and latency_ms["teacher"] / budget.min_speedup]
    limit_ms = min((limit for limit in limits if limit), default=None)
    correction = 1.0  # measured over estimated, learnt from the combinations that turned out too slow
    found: list[Chosen] = []
    refused: set[tuple[int, ...]] = set()
    fitting = combinations(costs, base, max_params=budget.max_params)
    for differ in range(min(2, len(blocks)), 0, -1):
        for combination in fitting:
            if len(found) == count:
                return found
            picked = [candidates[index] for candidates, index in zip(blocks, combination.choice, strict=True)]
            layered = any(one.depth for one in picked)
            # Without any layer a student has no cells at all, and is faster than the sum of its parts.
            slow = limit_ms is not None and layered and combination.latency_ms * correction > limit_ms
            alike = any(_unlike(picked, other) < differ for _, other in found)
            if slow or alike or combination.choice in refused:
                continue
            student = maker.call(maker.new_student(picked))
            measured = maker.latency_ms({"teacher": calls["teacher"], "student": student})
            if (budget.max_latency_ms is None or measured["student"] <= budget.max_latency_ms) and (
                budget.min_speedup is None or measured["teacher"] / measured["student"] >= budget.min_speedup
            ):
                found.append((combination, picked))
                continue
            refused.add(combination.choice)
            if layered:
                correction = max(correction, measured["student"] / combination.latency_ms)
            _log.info(
                "%s takes %.2f ms, %.2f estimated", combination.choice, measured["student"], combination.latency_ms
            )
    if found:
        return found
    everything = combinations(costs, base)
    raise PhaseError(
        f"no combination fits supernet.budget: the smallest student has {min(one.num_params for one in everything):,} "
        f"parameters, the fastest takes {min(one.latency_ms for one in everything):.2f} ms (teacher "
        f"{latency_ms['teacher']:.2f} ms); loosen the budget, lower student.hidden_size, or search smaller cell.depths"
    )


def _unlike(one: Sequence[Candidate], other: Sequence[Candidate]) -> int:
    """In how many blocks two combinations have other kinds of operations."""
    return sum(kind_of(a.architecture) != kind_of(b.architecture) for a, b in zip(one, other, strict=True))


def _calls(maker: StudentMaker, blocks: Sequence[Sequence[Candidate]]) -> tuple[dict[str, Call], Candidate]:
    """A forward pass of the teacher, of a student without cells, and of every cell; what the second one has."""
    lengths, width = maker.lengths, maker.run.study.student.hidden_size
    nothing = no_layer()
    empty = new_student(maker.shape, maker.start_of_students, [nothing for _ in blocks])
    calls = {"teacher": maker.call(maker.teacher), "base": maker.call(empty)}
    for block, candidates in enumerate(blocks):
        for index, one in enumerate(candidates):
            calls[f"{block}.{index}"] = cell_call(
                one.trained.body, width, lengths, sides=1 + (maker.shape.encoding == "separate")
            )
    return calls, replace(nothing, num_params=count_params(empty))


STAGE = Stage(
    name="supernet",
    units=lambda run: [{"seed": run.study.seed}],
    fingerprint=_fingerprint,
    make=_make,
    describe=describe,
    parameters={"seed": int},
    needs=lambda run, unit: [(name, {}) for name in ("probes", "general", "pairs", "corrupt") if load(name).units(run)],
    metrics=metrics,
    optimize="maximize",
    alone=True,
)
