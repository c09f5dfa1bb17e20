"""Phase 1, cell: search the cells of one depth for one block, or for all blocks that share an architecture."""

import itertools
import json
import logging
import time
from functools import partial
from typing import Any

import numpy as np

from nni_bertnas.artifacts import RunDirectory, atomic_folder, fingerprint, read_result, write_result
from nni_bertnas.config import Study, study_to_dict
from nni_bertnas.errors import ConfigError, PhaseError
from nni_bertnas.search.strategies import STRATEGIES, Search, check_budget, check_search
from nni_bertnas.search.watch import collapse
from nni_bertnas.store.reader import ensure_features, features_fingerprint, open_features, study_edges
from nni_bertnas.student.candidates import save_candidates
from nni_bertnas.student.cost import operation_costs
from nni_bertnas.tracking import Tracker
from nni_bertnas.training.teacher import ensure_teacher
from search_space.cells import list_choices, space_operations

_log = logging.getLogger(__name__)
NAMES = ("block", "depth")
PATHS = "paths.json"  # what the ranking of a one-shot supernet found: architecture and inherited score, best first
OPTIMIZE = "minimize"


def units(study: Study, num_blocks: int) -> list[dict[str, int]]:
    """The parameters of every unit of work of this phase; blocks that share an architecture are one unit."""
    blocks = 1 if study.cell.shared else num_blocks
    return [{"block": block, "depth": depth} for block in range(blocks) for depth in study.cell.depths]


def find(study: Study, block: int, depth: int) -> dict[str, Any] | None:
    """The finished result of one (block, depth), if it still fits the study."""
    return read_result(RunDirectory(study).cell(block, depth), _fingerprint(study, block, depth))


def _fingerprint(study: Study, block: int, depth: int) -> str:
    settings = study_to_dict(study)["cell"]
    del settings["depths"]  # another depth leaves this one as it is
    features = features_fingerprint(study, study_edges(study))
    student = study.student.hidden_size, study.student.precision
    return fingerprint(features, study.seed, student, settings, block, depth)


def run(study: Study, block: int, depth: int, tracker: Tracker | None = None) -> dict[str, Any]:
    """Search one (block, depth) and save its ranked candidates; a finished result that still fits is reused.

    Makes the teacher and the features first where they are missing.

    Args:
        study: The study.
        block: Number of the block, from 0.
        depth: Searchable layers.
        tracker: Takes the metrics.

    Returns:
        The result: fingerprint, block, depth, candidates (best first), seconds.

    Raises:
        ConfigError: The block does not exist, or the strategy cannot search the space.
        PhaseError: Every candidate failed.
    """
    tracker = tracker or Tracker()
    check_search(study)
    ensure_teacher(study)
    edges = ensure_features(study)["edges"]
    if not 0 <= block < len(edges) - 1:
        raise ConfigError(f"block must be 0 to {len(edges) - 2}, got {block}; correct block in the NNI search space")
    if study.cell.shared and block:
        raise ConfigError(f"block must be 0 where cell.shared is true, as one search serves all blocks, got {block}")
    result = find(study, block, depth)
    if result is None:
        result = _search(study, block, depth, tracker, edges)
    best = result["candidates"][0]
    tracker.final(
        {"default": best["score"], **{name: best[name] for name in ("num_params", "num_flops", "latency_ms")}}
    )
    return result


def _search(study: Study, block: int, depth: int, tracker: Tracker, edges: list[int]) -> dict[str, Any]:
    from nni_bertnas.training.trainer import pl

    start = time.perf_counter()
    pl.seed_everything(_seed(study, block, depth), verbose=False)
    search = make_search(study, block, depth, edges, tracker)
    found = STRATEGIES[study.cell.strategy](search)
    if not found:
        raise PhaseError(
            f"every candidate of block {block}, depth {depth} failed; see the log and lower cell.learning_rate"
        )
    kept = sorted(found, key=lambda one: one.score)[: study.cell.candidates]
    collapsed = collapse(kept[0].architecture, study.student.hidden_size)
    if collapsed:
        _log.warning("block %d, depth %d: the search has %s", block, depth, collapsed)
    train, dev = open_features(study, "train"), open_features(study, "dev")
    seconds = time.perf_counter() - start
    result: dict[str, Any] = {}
    # The block that stands for all comes last, so that it is there only when all are.
    for number in reversed(range(len(kept[0].cells))):
        result = {
            "fingerprint": _fingerprint(study, block + number, depth),
            "block": block + number,
            "depth": depth,
            "space": study.cell.space,
            "strategy": study.cell.strategy,
            "num_searched": len(found),
            "collapsed": collapsed,
            "seconds": seconds,
        }
        with atomic_folder(RunDirectory(study).cell(block + number, depth)) as folder:
            if search.paths:
                ranked = sorted(search.paths.values(), key=lambda pair: pair[1])
                (folder / PATHS).write_text(json.dumps(ranked), encoding="utf-8")
            result["candidates"] = save_candidates(folder, kept, train.hidden_size, dev.lengths.tolist(), number)
            write_result(folder, study, result)
    return result


def _seed(study: Study, block: int, depth: int) -> int:
    return study.seed + 1000 * block + depth


def make_search(study: Study, block: int, depth: int, edges: list[int], tracker: Tracker | None = None) -> Search:
    """What a strategy needs to search one (block, depth); the features must be there.

    Args:
        study: The study.
        block: Number of the block; 0 where all share an architecture.
        depth: Searchable layers.
        edges: Of all blocks.
        tracker: Takes the metrics of every epoch.
    """
    from nni_bertnas.search.evaluator import DistillationEvaluator
    from search_space.spaces import CellSpace

    config, width = study.cell, study.student.hidden_size
    tracker = tracker or Tracker()
    train, dev = open_features(study, "train"), open_features(study, "dev")
    own = edges if config.shared else edges[block : block + 2]
    operations = space_operations(config.space, width, config.operations)
    make_evaluator = partial(
        DistillationEvaluator,
        train=train,
        dev=dev,
        edges=own,
        epochs=config.epochs,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        gradient_clip=config.gradient_clip,
        max_rows=config.max_rows,
        precision=study.student.precision,
        seed=_seed(study, block, depth),
        report=lambda metrics: tracker.epoch(metrics, "train_loss"),
    )
    make_space = partial(
        CellSpace,
        space=config.space,
        depth=depth,
        teacher_size=train.hidden_size,
        hidden_size=width,
        operations=operations,
        blocks=len(own) - 1,
    )
    costs = None
    if config.cost is not None:
        # A space may have choices of operations that the study does not name, such as skips.
        every = itertools.chain(*list_choices(config.space, depth, operations, width).values())
        names = sorted({name for name in every if isinstance(name, str)})
        costs = operation_costs(names, width, config.cost, int(np.median(dev.lengths)))
    search = Search(
        make_space=make_space,
        make_evaluator=make_evaluator,
        config=config,
        seed=_seed(study, block, depth),
        folder=RunDirectory(study).nni / "inner",
        costs=costs,
    )
    check_budget(search)
    return search
