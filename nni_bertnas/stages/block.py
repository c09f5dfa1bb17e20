"""Stage block, phase 2: train each block's best candidates on all rows and rank them."""

import time
from collections.abc import Sequence
from pathlib import Path

from nni_bertnas.artifacts import fingerprint
from nni_bertnas.config import to_dict
from nni_bertnas.errors import PhaseError
from nni_bertnas.stages.cells import (
    describe,
    general_cells,
    metrics,
    read_candidates,
    starts_fresh,
    starts_general,
    table,
    with_latencies,
    with_replaced,
)
from nni_bertnas.stages.left_out import left_out
from nni_bertnas.stages.run import Result, Run, Unit
from nni_bertnas.stages.stage import Stage, load, stage_fingerprint
from nni_bertnas.student.candidates import Candidate, kind_of, no_layer, save_candidates
from nni_bertnas.tracking.tracker import Tracker
from nni_bertnas.training import resume
from nni_bertnas.training.trainer import pl


def _cells(run: Run, block: int) -> dict[int, Result]:
    """What was found for one block, by depth, without depths that are done without."""
    cell, searched = load("cell"), 0 if run.study.cell.shared else block
    results = {depth: run.read("cell", {"block": block, "depth": depth}) for depth in run.study.cell.depths}
    missing = [depth for depth, result in results.items() if result is None]
    given_up = [depth for depth in missing if left_out(run, cell, {"block": searched, "depth": depth}) is not None]
    if missing and (missing != given_up or len(missing) == len(results)):
        raise PhaseError(
            f"block {block} has no cells of depth {', '.join(map(str, missing))}; make them with: bertnas cell STUDY "
            "(or nnictl create --config experiment_configs/cell.yml)"
        )
    return {depth: result for depth, result in results.items() if result is not None}


def _fingerprint(run: Run, unit: Unit) -> str:
    study = run.study
    searches = sorted(result["fingerprint"] for result in _cells(run, unit["block"]).values())
    parts = searches, study.seed, study.student.precision, to_dict(study.block)
    general = [stage_fingerprint(run, "general")] if starts_general(run) else []
    return fingerprint(*parts, *general)


def choose(candidates: Sequence[Candidate], count: int) -> list[Candidate]:
    """Up to `count` candidates, over all depths.

    Deeper cells gain more from further training than their scores so far tell, and small differences tell nothing yet.
    So first comes the deepest of those within 2 % of the best score, then the lowest latency, so that a budget always
    finds something; then the best of every depth, and of every kind of operations, that has none yet; then those within
    1 % of the first at its depth; then the rest of the Pareto front of score and latency by score; then the others by
    score.
    """
    everything = sorted(candidates, key=lambda one: one.score)
    fastest = min(everything, key=lambda one: one.latency_ms)
    close = [one for one in everything if one.score <= 1.02 * everything[0].score]
    first = max(close, key=lambda one: one.depth)
    ties = [one for one in close if one.depth == first.depth and one.score <= 1.01 * first.score]
    of_each_depth = {first.depth: first, fastest.depth: fastest}
    front: list[Candidate] = []
    for one in everything:
        of_each_depth.setdefault(one.depth, one)
        if not front or one.latency_ms < front[-1].latency_ms:
            front.append(one)
    before = [first, fastest, *of_each_depth.values()]
    seen = {kind_of(one.architecture) for one in before}
    of_each_kind = {kind_of(one.architecture): one for one in reversed(everything)}
    others = sorted((one for kind, one in of_each_kind.items() if kind not in seen), key=lambda one: one.score)
    order = [*before, *others, *ties, *front, *everything]
    distinct = {id(one): one for one in order}
    return list(distinct.values())[:count]


def _make(run: Run, unit: Unit, folder: Path, tracker: Tracker) -> Result:
    start, block, study = time.perf_counter(), unit["block"], run.study
    found = _cells(run, block)
    teacher_size, width = run.train.hidden_size, study.student.hidden_size
    # By the table, as those of one depth were timed beside other trials than those of the next.
    every = [one for result in found.values() for one in read_candidates(result)]
    count = study.block.candidates
    best = resume.remember("chosen", lambda: [one.to_dict() for one in choose(with_latencies(run, every), count)])
    chosen = [Candidate.from_dict(one).fresh(teacher_size, width) for one in best]
    plain = [no_layer().fresh(teacher_size, width)] if study.block.no_layer else []
    pl.seed_everything(run.seed(block), verbose=False)
    trainer = run.trainer(block, study.block, tracker, seed=run.seed(block))
    fresh = starts_fresh(run)
    if starts_general(run):
        chosen, plain = (general_cells(run, block, some, tracker) for some in (chosen, plain))
        fresh = False
    elif not fresh:
        folders = {depth: run.folder("cell", {"block": block, "depth": depth}) for depth in found}
        chosen = [one.load(folders[one.depth], teacher_size, width) for one in chosen]
        for one in plain:
            trainer.start_maps([one.trained])
    trained = trainer.train_on([*chosen, *plain], width, fresh=fresh)
    if not trained:
        raise PhaseError(f"every candidate of block {block} failed; see the log and lower block.learning_rate")
    ranked = with_replaced(run, block, sorted(trained, key=lambda one: one.score))
    return {
        "block": block,
        "seconds": time.perf_counter() - start,
        "candidates": save_candidates(folder, ranked, teacher_size, run.dev.lengths.tolist()),
    }


STAGE = Stage(
    name="block",
    units=lambda run: [{"block": block} for block in range(run.num_blocks)],
    fingerprint=_fingerprint,
    make=_make,
    describe=describe,
    parameters={"block": int},
    needs=lambda run, unit: [
        *run.probe_stage,
        *([("general", {})] if starts_general(run) else []),
    ],
    check=lambda run, unit: run.check_block(unit["block"]),
    metrics=metrics,
    table=table,
    optimize="minimize",
)
