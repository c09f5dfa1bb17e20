"""Phase 2, block: train each block's best candidates on all rows and rank them."""

import logging
import time
from typing import Any

from nni_bertnas.artifacts import RunDirectory, atomic_folder, fingerprint, read_result, write_result
from nni_bertnas.config import Study, study_to_dict
from nni_bertnas.errors import CandidateError, ConfigError, PhaseError
from nni_bertnas.search.strategies import Found
from nni_bertnas.store.reader import open_features, study_edges
from nni_bertnas.student.candidates import Candidate, load_cell, save_candidates
from nni_bertnas.tracking import Tracker
from search_space.cells import build_cell

_log = logging.getLogger(__name__)
NAMES = ("block",)
OPTIMIZE = "minimize"


def units(study: Study, num_blocks: int) -> list[dict[str, int]]:
    """The parameters of every unit of work of this phase."""
    return [{"block": block} for block in range(num_blocks)]


def find(study: Study, block: int) -> dict[str, Any] | None:
    """The finished result of one block, if it still fits the study and its cells."""
    return read_result(RunDirectory(study).block(block), _fingerprint(study, _cells(study, block)))


def _cells(study: Study, block: int) -> dict[int, dict[str, Any]]:
    results = {depth: read_result(RunDirectory(study).cell(block, depth)) for depth in study.cell.depths}
    if missing := [depth for depth, result in results.items() if result is None]:
        raise PhaseError(
            f"block {block} has no cells of depth {', '.join(map(str, missing))}; make them with: bertnas cell STUDY "
            "(or nnictl create --config experiment_configs/cell.yml)"
        )
    return {depth: result for depth, result in results.items() if result is not None}


def _fingerprint(study: Study, cells: dict[int, dict[str, Any]]) -> str:
    searches = sorted(result["fingerprint"] for result in cells.values())
    return fingerprint(searches, study.seed, study.student.precision, study_to_dict(study)["block"])


def run(study: Study, block: int, tracker: Tracker | None = None) -> dict[str, Any]:
    """Train and rank the best candidates of one block, over all depths; a finished result that still fits is reused.

    Args:
        study: The study.
        block: Number of the block, from 0.
        tracker: Takes the metrics.

    Returns:
        The result: fingerprint, block, candidates (best first), seconds.

    Raises:
        ConfigError: The block does not exist.
        PhaseError: The cell phase has not been run for it, or every candidate failed.
    """
    tracker = tracker or Tracker()
    edges = study_edges(study)
    if not 0 <= block < len(edges) - 1:
        raise ConfigError(f"block must be 0 to {len(edges) - 2}, got {block}; correct block in the NNI search space")
    result = find(study, block)
    if result is None:
        result = _train(study, block, tracker, edges)
    best = result["candidates"][0]
    tracker.final(
        {"default": best["score"], **{name: best[name] for name in ("num_params", "num_flops", "latency_ms")}}
    )
    return result


def choose(cells: dict[int, dict[str, Any]], count: int) -> list[tuple[int, Candidate]]:
    """Up to `count` candidates with their depths, over all depths.

    Deeper cells gain more from further training than their scores so far tell, and small differences tell nothing yet.
    So first comes the deepest of those within 2 % of the best score, then the lowest latency, so that a budget always
    finds something; then the best of every depth that has none yet; then those within 1 % of the first at its depth;
    then the rest of the Pareto front of score and latency by score; then the others by score.
    """
    everything = [(depth, candidate) for depth, result in cells.items() for candidate in result["candidates"]]
    everything.sort(key=lambda pair: pair[1]["score"])
    fastest = min(everything, key=lambda pair: pair[1]["latency_ms"])
    close = [pair for pair in everything if pair[1]["score"] <= 1.02 * everything[0][1]["score"]]
    first = max(close, key=lambda pair: pair[0])
    ties = [pair for pair in close if pair[0] == first[0] and pair[1]["score"] <= 1.01 * first[1]["score"]]
    of_each_depth = {first[0]: first, fastest[0]: fastest}
    front: list[tuple[int, Candidate]] = []
    for pair in everything:
        of_each_depth.setdefault(pair[0], pair)
        if not front or pair[1]["latency_ms"] < front[-1][1]["latency_ms"]:
            front.append(pair)
    order = [first, fastest, *of_each_depth.values(), *ties, *front, *everything]
    distinct = {id(candidate): (depth, candidate) for depth, candidate in order}
    return list(distinct.values())[:count]


def _train(study: Study, block: int, tracker: Tracker, edges: list[int]) -> dict[str, Any]:
    from nni_bertnas.search.evaluator import DistillationEvaluator
    from nni_bertnas.training.trainer import pl

    start = time.perf_counter()
    config = study.block
    cells = _cells(study, block)
    seed = study.seed + 1000 * block
    pl.seed_everything(seed, verbose=False)
    run_directory = RunDirectory(study)
    train, dev = open_features(study, "train"), open_features(study, "dev")
    evaluator = DistillationEvaluator(
        train=train,
        dev=dev,
        edges=edges[block : block + 2],
        epochs=config.epochs,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        optimizer=config.optimizer,
        precision=study.student.precision,
        seed=seed,
        report=lambda metrics: tracker.epoch(metrics, "train_loss"),
    )
    chosen = choose(cells, config.candidates)
    width = study.student.hidden_size
    if study.starts_fresh(len(train.rows)):
        shapes = [(one["space"], one["architecture"], depth, train.hidden_size, width) for depth, one in chosen]
        trained = [build_cell(*shape) for shape in shapes]
        for cell in trained:
            evaluator.start_maps([cell])
    else:
        trained = [load_cell(run_directory.cell(block, depth), one, train.hidden_size, width) for depth, one in chosen]
    evaluator.fit_candidates([cell.train() for cell in trained], config.epochs)
    found = []
    for (_, candidate), cell in zip(chosen, trained, strict=True):
        fields = {name: candidate[name] for name in ("space", "depth", "architecture", "inherited")}
        try:
            found.append(Found(**fields, cells=[cell], scores=evaluator.score([cell])))
        except CandidateError as error:
            _log.warning("block %d, %s: %s", block, candidate["architecture"], error)
    if not found:
        raise PhaseError(f"every candidate of block {block} failed; see the log and lower block.learning_rate")
    result: dict[str, Any] = {
        "fingerprint": _fingerprint(study, cells),
        "block": block,
        "seconds": time.perf_counter() - start,
    }
    with atomic_folder(run_directory.block(block)) as folder:
        result["candidates"] = save_candidates(folder, found, train.hidden_size, dev.lengths.tolist())
        write_result(folder, study, result)
    return result
