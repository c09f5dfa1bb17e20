"""Stage cell, phase 1: search the cells of one depth for one block, or for all blocks that share an architecture."""

import json
import logging
import time
from pathlib import Path

from nni_bertnas.artifacts import atomic_folder, clear_leftovers, fingerprint, write_whole
from nni_bertnas.config import to_dict
from nni_bertnas.errors import ConfigError, PhaseError
from nni_bertnas.search.search import Found, mean_score
from nni_bertnas.search.strategies import check_search, find_strategy
from nni_bertnas.search.watch import collapse
from nni_bertnas.stages.cells import describe, make_search, metrics, table
from nni_bertnas.stages.run import Result, Run, Unit
from nni_bertnas.stages.stage import Stage, stage_fingerprint
from nni_bertnas.student.candidates import kind_of, kinds_first, save_candidates
from nni_bertnas.tracking.tracker import Tracker
from nni_bertnas.training.trainer import pl

_log = logging.getLogger(__name__)
PATHS = "paths.json"  # what the ranking of a one-shot supernet found: architecture and inherited score, best first


def _units(run: Run) -> list[Unit]:
    """Blocks that share an architecture are one unit."""
    settings = run.study.cell
    blocks = 1 if settings.shared else run.num_blocks
    return [{"block": block, "depth": depth} for block in range(blocks) for depth in settings.depths]


def _fingerprint(run: Run, unit: Unit) -> str:
    study = run.study
    settings = to_dict(study.cell) | {"options": to_dict(find_strategy(study.cell)[1])}
    del settings["depths"]  # another depth leaves this one as it is
    student = study.student.hidden_size, study.student.precision
    return fingerprint(stage_fingerprint(run, "features"), study.seed, student, settings, unit["block"], unit["depth"])


def _check(run: Run, unit: Unit) -> None:
    settings = run.study.cell
    check_search(settings, run.study.student.hidden_size)
    run.check_block(unit["block"])
    if unit["depth"] not in settings.depths:
        raise ConfigError(f"depth must be one of cell.depths {settings.depths}, got {unit['depth']}")
    if settings.shared and unit["block"]:
        raise ConfigError(
            f"block must be 0 where cell.shared is true, as one search serves all blocks, got {unit['block']}"
        )


def _make(run: Run, unit: Unit, folder: Path, tracker: Tracker) -> Result:
    start, block, depth = time.perf_counter(), unit["block"], unit["depth"]
    pl.seed_everything(run.seed(block, depth), verbose=False)
    search = make_search(run, block, depth, tracker)
    found = find_strategy(run.study.cell)[0].load()(search)
    if not found.groups:
        raise PhaseError(
            f"every candidate of block {block}, depth {depth} failed; see the log and lower cell.learning_rate"
        )
    seconds = time.perf_counter() - start
    # Where blocks share the search, the one that stands for all comes last, so that it is there only when all are.
    for other in range(1, search.trainer.blocks):
        target = run.folder("cell", {"block": block + other, "depth": depth})
        clear_leftovers(target)
        with atomic_folder(target) as beside:
            result = _save(run, {"block": block + other, "depth": depth}, beside, found, other, seconds)
            mark = _fingerprint(run, {"block": block + other, "depth": depth})
            run.write(beside, {"fingerprint": mark, **result})
    return _save(run, unit, folder, found, 0, seconds)


def _save(run: Run, unit: Unit, folder: Path, found: Found, number: int, seconds: float) -> Result:
    """The kept candidates of one block out of what was found.

    Args:
        run: Of the study.
        unit: Block and depth.
        folder: Takes the weights.
        found: By the search.
        number: Of the block among those that were searched together.
        seconds: That the search took.
    """
    order = kinds_first(sorted(found.groups, key=mean_score), lambda group: kind_of(group[0].architecture))
    kept = order[: run.study.cell.candidates]
    collapsed = collapse(kept[0][0].architecture, run.study.student.hidden_size)
    if collapsed:
        _log.warning("block %d, depth %d: the search has %s", unit["block"], unit["depth"], collapsed)
    if found.paths:
        ranked = sorted(found.paths.values(), key=lambda pair: pair[1])
        write_whole(folder / PATHS, json.dumps(ranked))
    candidates = [group[number] for group in kept]
    return {
        **unit,
        "space": run.study.cell.space,
        "strategy": run.study.cell.strategy,
        "num_searched": len(found.groups),
        "collapsed": collapsed,
        "seconds": seconds,
        "candidates": save_candidates(folder, candidates, run.train.hidden_size, run.dev.lengths.tolist()),
    }


STAGE = Stage(
    name="cell",
    units=_units,
    fingerprint=_fingerprint,
    make=_make,
    describe=describe,
    parameters={"block": int, "depth": int},
    needs=lambda run, unit: [("teacher", {}), ("features", {}), *run.probe_stage],
    check=_check,
    metrics=metrics,
    table=table,
    optimize="minimize",
    spares=lambda run, done: {unit["block"] for unit in done} == {unit["block"] for unit in _units(run)},
)
