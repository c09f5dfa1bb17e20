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
from nni_bertnas.stages.students import STUDENT, StudentMaker, describe, metrics
from nni_bertnas.student.build import new_student
from nni_bertnas.student.candidates import Candidate, no_layer
from nni_bertnas.student.cost import Call, cell_call, count_params
from nni_bertnas.student.selection import Combination, combinations
from nni_bertnas.tracking import Tracker

_log = logging.getLogger(__name__)
SEARCHED = "searched"
BAG = "bag"


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
    chosen, candidates = choose(maker, blocks)
    searched = {}
    if len(run.shapes) > 1:
        searched = search_shapes(
            run.shapes,
            maker.new_student(candidates).config,
            lambda shape: maker.judge(candidates, shape),
            run.nni / "inner",
        )
        maker.shape = max(run.shapes, key=lambda shape: searched[shape_name(shape)])
        chosen, candidates = choose(maker, blocks)  # as one head is slower than another
    result = maker.train(candidates, SEARCHED, folder / SEARCHED, tracker)
    kept, metric = SEARCHED, f"dev_{run.task.metric}"
    if run.study.supernet.bag and run.shape.static_path and any(one.depth for one in candidates):
        width = run.train.hidden_size, run.study.student.hidden_size
        bag = maker.train([no_layer().fresh(*width) for _ in blocks], BAG, folder / BAG, Tracker())
        sides = {name: one["student"] for name, one in ((SEARCHED, result), (BAG, bag))}
        if sides[BAG][metric] >= sides[SEARCHED][metric]:  # layers have to earn their latency
            kept, result = BAG, bag
        result = {**result, "student_kind": SEARCHED, "compared": sides}
    (folder / kept / STUDENT).rename(folder / STUDENT)
    for name in (SEARCHED, BAG):
        shutil.rmtree(folder / name, ignore_errors=True)
    return {"selection": asdict(chosen), "kept": kept, **({"shapes": searched} if searched else {}), **result}


def choose(maker: StudentMaker, blocks: Sequence[Sequence[Candidate]]) -> tuple[Combination, list[Candidate]]:
    """The best combination whose student, built and measured, is within the budget.

    Candidates are measured here side by side with the teacher, as what was measured in trials that ran at the same
    time as others cannot be compared.

    Args:
        maker: Builds students and measures.
        blocks: Every block's candidates with their cells.

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
    for combination in combinations(costs, base, max_params=budget.max_params):
        picked = [candidates[index] for candidates, index in zip(blocks, combination.choice, strict=True)]
        layered = any(one.depth for one in picked)
        # Without any layer a student has no cells at all, and is faster than the sum of its parts.
        if limit_ms is not None and layered and combination.latency_ms * correction > limit_ms:
            continue
        student = maker.call(maker.new_student(picked))
        measured = maker.latency_ms({"teacher": calls["teacher"], "student": student})
        if (budget.max_latency_ms is None or measured["student"] <= budget.max_latency_ms) and (
            budget.min_speedup is None or measured["teacher"] / measured["student"] >= budget.min_speedup
        ):
            return combination, picked
        if layered:
            correction = max(correction, measured["student"] / combination.latency_ms)
        _log.info("%s takes %.2f ms, %.2f estimated", combination.choice, measured["student"], combination.latency_ms)
    everything = combinations(costs, base)
    raise PhaseError(
        f"no combination fits supernet.budget: the smallest student has {min(one.num_params for one in everything):,} "
        f"parameters, the fastest takes {min(one.latency_ms for one in everything):.2f} ms (teacher "
        f"{latency_ms['teacher']:.2f} ms); loosen the budget, lower student.hidden_size, or search smaller cell.depths"
    )


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
