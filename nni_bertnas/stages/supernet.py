"""Stage supernet, phase 3: choose one candidate per block, chain them, train the student end to end, save it."""

import logging
import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

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
    maker = StudentMaker(run, unit["seed"])
    blocks = load_ranked(run)
    made: Result = {}
    if len(run.shapes) > 1:
        _, first = _choose(maker, blocks, 1)[0]
        config, inner = maker.new_student(first).config, run.nni / "inner"

        def judge(shape: StudentSettings) -> float:
            return -maker.judge(first, tracker.part(shape_name(shape)), shape)

        made["shapes"] = search_shapes(run.shapes, config, judge, inner)
        maker.shape = max(run.shapes, key=lambda shape: made["shapes"][shape_name(shape)])
    chosen, candidates = _final(maker, _choose(maker, blocks, run.study.supernet.finalists), made, tracker)
    result = maker.train(candidates, SEARCHED, folder / SEARCHED, tracker)
    kept = SEARCHED
    if run.study.supernet.bag and run.shape.static_path and any(one.depth for one in candidates):
        width = run.train.hidden_size, run.study.student.hidden_size
        bag = maker.train([no_layer().fresh(*width) for _ in blocks], BAG, folder / BAG, tracker.part(BAG))
        both = {SEARCHED: result, BAG: bag}
        sides = {name: {**one["student"], FIDELITY: one[FIDELITY]} for name, one in both.items()}
        if bag[FIDELITY] <= result[FIDELITY]:  # layers have to earn their latency
            kept, result = BAG, bag
        result = {**result, "student_kind": SEARCHED, "compared": sides}
    (folder / kept / STUDENT).rename(folder / STUDENT)
    for name in (SEARCHED, BAG):
        shutil.rmtree(folder / name, ignore_errors=True)
    return {"selection": asdict(chosen), "kept": kept, **made, **result}


def _choose(maker: StudentMaker, blocks: Sequence[Sequence[Candidate]], count: int) -> list[Chosen]:
    """As :func:`choose`; another attempt at the unit takes the same, whatever it measures."""
    known = resume.remember(f"chosen{count}", lambda: [asdict(one) for one, _ in choose(maker, blocks, count)])
    found = [Combination(**{**one, "choice": tuple(one["choice"])}) for one in known]
    return [(one, [of_block[n] for of_block, n in zip(blocks, one.choice, strict=True)]) for one in found]


def _final(maker: StudentMaker, finalists: Sequence[Chosen], made: Result, tracker: Tracker) -> Chosen:
    """The one of the finalists that comes nearest to the teacher after a short training; the fastest of equally near.

    Args:
        maker: Of students.
        finalists: At least one.
        made: Is told what was tried, where there is more than one.
        tracker: Takes the metrics of every epoch.
    """
    if len(finalists) == 1:
        return finalists[0]
    errors = [
        _error(maker, candidates, tracker.part(f"finalist{number}")) for number, (_, candidates) in enumerate(finalists)
    ]
    if math.isinf(min(errors)):
        raise PhaseError("no finalist could be trained; see the log and lower supernet.learning_rate")
    made["finalists"] = [
        {
            "cells": [spell(one.architecture) for one in candidates],
            "score": combination.score,
            "latency_ms": combination.latency_ms,
            FIDELITY: error if math.isfinite(error) else None,
        }
        for (combination, candidates), error in zip(finalists, errors, strict=True)
    ]
    near = [one for one, error in zip(finalists, errors, strict=True) if error <= _EQUAL * min(errors)]
    return min(near, key=lambda one: one[0].latency_ms)


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
