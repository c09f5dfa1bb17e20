"""Phase 1, cell: search the cells of one depth for one block."""

import time
from functools import partial
from typing import Any

from nni_bertnas.artifacts import RunDirectory, atomic_folder, fingerprint, read_result, write_result
from nni_bertnas.candidates import save_candidates
from nni_bertnas.config import Study, study_to_dict
from nni_bertnas.errors import ConfigError, PhaseError
from nni_bertnas.features import ensure_features, features_fingerprint, open_features, study_edges
from nni_bertnas.strategies import STRATEGIES, Search
from nni_bertnas.teacher import ensure_teacher
from nni_bertnas.tracking import Tracker
from search_space.operations import operation_names

NAMES = ("block", "depth")
OPTIMIZE = "minimize"


def units(study: Study, num_blocks: int) -> list[dict[str, int]]:
    """The parameters of every unit of work of this phase."""
    return [{"block": block, "depth": depth} for block in range(num_blocks) for depth in study.cell.depths]


def find(study: Study, block: int, depth: int) -> dict[str, Any] | None:
    """The finished result of one (block, depth), if it still fits the study."""
    return read_result(RunDirectory(study).cell(block, depth), _fingerprint(study, block, depth))


def _fingerprint(study: Study, block: int, depth: int) -> str:
    settings = study_to_dict(study)["cell"]
    del settings["depths"]  # another depth leaves this one as it is
    features = features_fingerprint(study, study_edges(study))
    return fingerprint(features, study.seed, study.student.hidden_size, settings, block, depth)


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
        ConfigError: The block does not exist.
        PhaseError: Every candidate failed.
    """
    tracker = tracker or Tracker()
    ensure_teacher(study)
    edges = ensure_features(study)["edges"]
    if not 0 <= block < len(edges) - 1:
        raise ConfigError(f"block must be 0 to {len(edges) - 2}, got {block}; correct block in the NNI search space")
    result = find(study, block, depth)
    if result is None:
        result = _search(study, block, depth, tracker, edges)
    best = result["candidates"][0]
    tracker.final(
        {"default": best["score"], **{name: best[name] for name in ("num_params", "num_flops", "latency_ms")}}
    )
    return result


def _search(study: Study, block: int, depth: int, tracker: Tracker, edges: list[int]) -> dict[str, Any]:
    from nni_bertnas.evaluator import DistillationEvaluator
    from nni_bertnas.training import pl
    from search_space.spaces import CellSpace

    start = time.perf_counter()
    config = study.cell
    seed = study.seed + 1000 * block + depth
    pl.seed_everything(seed, verbose=False)
    train, dev = open_features(study, "train"), open_features(study, "dev")
    space = CellSpace(
        depth=depth,
        operations=operation_names(config.operations, study.student.hidden_size),
        teacher_size=train.hidden_size,
        hidden_size=study.student.hidden_size,
    )
    make_evaluator = partial(
        DistillationEvaluator,
        train=train,
        dev=dev,
        entry=edges[block],
        exit_=edges[block + 1],
        epochs=config.epochs,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        gradient_clip=config.gradient_clip,
        max_rows=config.max_rows,
        seed=seed,
        report=lambda metrics: tracker.epoch(metrics, "train_loss"),
    )
    search = Search(
        space=space, make_evaluator=make_evaluator, config=config, seed=seed, folder=RunDirectory(study).nni / "inner"
    )
    found = STRATEGIES[config.strategy](search)
    if not found:
        raise PhaseError(
            f"every candidate of block {block}, depth {depth} failed; see the log and lower cell.learning_rate"
        )
    result: dict[str, Any] = {
        "fingerprint": _fingerprint(study, block, depth),
        "block": block,
        "depth": depth,
        "strategy": config.strategy,
        "num_searched": len(found),
        "seconds": time.perf_counter() - start,
    }
    with atomic_folder(RunDirectory(study).cell(block, depth)) as folder:
        kept = sorted(found, key=lambda one: one.score)[: config.candidates]
        result["candidates"] = save_candidates(folder, kept, train.hidden_size, dev.lengths.tolist())
        write_result(folder, study, result)
    return result
