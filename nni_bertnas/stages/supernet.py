"""Stage supernet, phase 3: choose one candidate per block, chain them, train the student end to end, save it."""

import logging
import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nni_bertnas.artifacts import fingerprint
from nni_bertnas.config import StudentSettings, to_dict
from nni_bertnas.errors import CandidateError, PhaseError
from nni_bertnas.search.shapes import search_shapes, shape_name
from nni_bertnas.stages.cells import load_ranked, read_rankings
from nni_bertnas.stages.choice import Chosen, choose
from nni_bertnas.stages.run import Result, Run, Unit
from nni_bertnas.stages.stage import Stage, load, stage_fingerprint
from nni_bertnas.stages.students import FIDELITY, STUDENT, StudentMaker, describe, metrics
from nni_bertnas.student.candidates import Candidate, no_layer
from nni_bertnas.student.selection import Combination
from nni_bertnas.tracking.tracker import Tracker
from nni_bertnas.training import resume
from search_space.cells import spell

SEARCHED = "searched"
BAG = "bag"
HALF = "half"
OTHER = "other"  # folder of the finalist that was trained to its end beside the searched student
_EQUAL = 1.02  # times the least error: no more than seeds differ by
_log = logging.getLogger(__name__)


def _fingerprint(run: Run, unit: Unit) -> str:
    study = run.study
    parts = [to_dict(part) for part in (*run.shapes, study.supernet, study.distill)]
    for part in parts:
        part.pop("students", None)  # how many others there are changes none
    made = [stage_fingerprint(run, name) for name in ("augment", "pairs", "corrupt") if load(name).units(run)]
    general = [stage_fingerprint(run, "general"), to_dict(study.general)] if run.general_rows else []
    blocks = [ranking["fingerprint"] for ranking in read_rankings(run)]
    return fingerprint(blocks, unit["seed"], parts, made, study.augment.copies, general)


def _make(run: Run, unit: Unit, folder: Path, tracker: Tracker) -> Result:
    start, maker = time.perf_counter(), StudentMaker(run, unit["seed"])
    blocks = load_ranked(run)
    made: Result = {}
    if len(run.shapes) > 1:
        _, first = _choose(maker, blocks, 1)[0]
        config, inner = maker.new_student(first).config, run.nni / "inner"

        def judge(shape: StudentSettings) -> float:
            return -maker.judge(first, tracker.part(shape_name(shape)), shape)

        made["shapes"] = search_shapes(run.shapes, config, judge, inner)
        maker.shape = max(run.shapes, key=lambda shape: made["shapes"][shape_name(shape)])
    trained, finalists = folder / "all", _choose(maker, blocks, run.study.supernet.finalists)
    last = [finalists[number] for number in _judged(maker, finalists, made, tracker)]
    students = [
        maker.train(candidates, SEARCHED, trained / str(number), tracker.part(HALF) if number else tracker)
        for number, (_, candidates) in enumerate(last)
    ]
    taken = nearest([(one[FIDELITY], one["student"]["latency_ms"]) for one in students])
    if len(students) > 1:
        made["finals"] = [{**_cells(pair[1]), **_side(one)} for pair, one in zip(last, students, strict=True)]
        (trained / str(1 - taken) / STUDENT).rename(folder / OTHER)
    (chosen, candidates), result, place = last[taken], students[taken], trained / str(taken)
    kept = HALF if taken else SEARCHED
    if run.study.supernet.bag and run.shape.static_path and any(one.depth for one in candidates):
        width = run.train.hidden_size, run.study.student.hidden_size
        bag = maker.train([no_layer().fresh(*width) for _ in blocks], BAG, trained / BAG, tracker.part(BAG))
        sides = {SEARCHED: _side(result), BAG: _side(bag)}
        if bag[FIDELITY] <= result[FIDELITY]:  # layers have to earn their latency
            kept, result, place = BAG, bag, trained / BAG
        result = {**result, "student_kind": SEARCHED, "compared": sides}
    (place / STUDENT).rename(folder / STUDENT)
    shutil.rmtree(trained)
    return {"selection": asdict(chosen), "kept": kept, **made, **result, "seconds": time.perf_counter() - start}


def nearest(students: Sequence[tuple[float, float]]) -> int:
    """Which of some students to take, given their errors and latencies: the fastest within 2 % of the least error."""
    least = min(error for error, _ in students)
    near = [number for number, (error, _) in enumerate(students) if error <= _EQUAL * least]
    return min(near, key=lambda number: students[number][1])


def finals(finalists: Sequence[tuple[float, float]]) -> list[int]:
    """Which of some finalists to train to their end, given their errors after a short training, and latencies.

    The nearest; and of those that take at most half its latency, where there are any, the nearest, as those that learn
    fast are not those that come nearest in the end. Which are equal, the end tells, not so short a training.
    """
    first = min(range(len(finalists)), key=finalists.__getitem__)
    half = [n for n, (error, ms) in enumerate(finalists) if ms <= finalists[first][1] / 2 and math.isfinite(error)]
    return [first, min(half, key=finalists.__getitem__)] if half else [first]


def _cells(candidates: Sequence[Candidate]) -> dict[str, list[str]]:
    return {"cells": [spell(one.architecture) for one in candidates]}


def _side(result: Result) -> dict[str, Any]:
    """What is kept of a student beside another: scores, costs, and how near it comes to the teacher."""
    return {**result["student"], FIDELITY: result[FIDELITY]}


def _choose(maker: StudentMaker, blocks: Sequence[Sequence[Candidate]], count: int) -> list[Chosen]:
    """As :func:`choose`; another attempt at the unit takes the same, whatever it measures."""
    known = resume.remember(f"chosen{count}", lambda: [asdict(one) for one, _ in choose(maker, blocks, count)])
    found = [Combination(**{**one, "choice": tuple(one["choice"])}) for one in known]
    return [(one, [of_block[n] for of_block, n in zip(blocks, one.choice, strict=True)]) for one in found]


def _judged(maker: StudentMaker, finalists: Sequence[Chosen], made: Result, tracker: Tracker) -> list[int]:
    """Which finalists are trained to their end, after a short training of each.

    Args:
        maker: Of students.
        finalists: At least one.
        made: Is told what was tried, where there is more than one.
        tracker: Takes the metrics of every epoch.
    """
    if len(finalists) == 1:
        return [0]
    errors = [
        _error(maker, candidates, tracker.part(f"finalist{number}")) for number, (_, candidates) in enumerate(finalists)
    ]
    if math.isinf(min(errors)):
        raise PhaseError("no finalist could be trained; see the log and lower supernet.learning_rate")
    made["finalists"] = [
        {
            **_cells(candidates),
            "score": combination.score,
            "latency_ms": combination.latency_ms,
            FIDELITY: error if math.isfinite(error) else None,
        }
        for (combination, candidates), error in zip(finalists, errors, strict=True)
    ]
    chosen = finals([(error, one.latency_ms) for error, (one, _) in zip(errors, finalists, strict=True)])
    bare = [not any(one.depth for one in finalists[number][1]) for number in chosen]  # a bag is trained beside anyway
    return chosen if maker.run.study.supernet.half and not bare[-1] else chosen[:1]


def _error(maker: StudentMaker, candidates: Sequence[Candidate], tracker: Tracker) -> float:
    """What :meth:`StudentMaker.judge` gives; of one that does not train the greatest there is."""
    try:
        return maker.judge(candidates, tracker)
    except CandidateError as error:
        _log.warning("%s: %s", "; ".join(map(str, candidates)), error)
        return math.inf


STAGE = Stage(
    name="supernet",
    units=lambda run: [{"seed": run.study.seed}],
    fingerprint=_fingerprint,
    make=_make,
    describe=describe,
    parameters={"seed": int},
    needs=lambda run, unit: [(name, {}) for name in ("probes", "general", "pairs", "corrupt") if load(name).units(run)],
    metrics=metrics,
    model=STUDENT,
    optimize="maximize",
    alone=True,
)
