"""What the stages have in common whose results are ranked candidates of one block."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from nni_bertnas.artifacts import fingerprint
from nni_bertnas.config import to_dict
from nni_bertnas.data.batches import make_loader
from nni_bertnas.errors import PhaseError
from nni_bertnas.machine import best_device
from nni_bertnas.search.search import Costs, Search
from nni_bertnas.search.strategies import find_strategy
from nni_bertnas.stages.general import general_folder, load_shared, save_shared
from nni_bertnas.stages.run import Result, Run
from nni_bertnas.store.reader import FeatureDataset, FeatureStore
from nni_bertnas.student.candidates import Candidate
from nni_bertnas.student.cost import operation_costs
from nni_bertnas.student.latency import Part, around, cell_parts, model_part
from nni_bertnas.tracking.tracker import Tracker
from nni_bertnas.training import resume
from nni_bertnas.training.cells import CellTrainer
from nni_bertnas.training.replaced import replaced_errors
from nni_bertnas.training.texts import TEXTS
from nni_bertnas.training.trainer import pl
from search_space.cells import Sequential, spell


def read_candidates(result: Result) -> list[Candidate]:
    """The candidates of a result, best first."""
    return [Candidate.from_dict(one) for one in result["candidates"]]


def metrics(run: Run, result: Result) -> dict[str, float]:
    """What NNI is told: score and costs of the best candidate."""
    best = result["candidates"][0]
    return {"default": best["score"], **{name: best[name] for name in ("num_params", "num_flops", "latency_ms")}}


def table(result: Result) -> list[dict[str, Any]]:
    """The candidates of a result, best first, with their architectures as texts."""
    return [
        {
            "architecture": spell(one.architecture),
            "depth": one.depth,
            "score": one.score,
            "replaced": one.replaced,
            "inherited": one.inherited,
            "num_params": one.num_params,
            "num_flops": one.num_flops,
            "latency_ms": one.latency_ms,
        }
        for one in read_candidates(result)
    ]


def describe(run: Run, result: Result) -> str:
    """The best candidate in one line."""
    best = read_candidates(result)[0]
    return (
        f"score {best.score:.4f}, {best.num_params:,} parameters, {best.latency_ms:.2f} ms in PyTorch: "
        f"{spell(best.architecture)}"
    )


def make_search(run: Run, block: int, depth: int, tracker: Tracker | None = None) -> Search:
    """What a strategy needs to search one (block, depth); the features must be there.

    Args:
        run: Of the study.
        block: Number of the block; 0 where all share an architecture.
        depth: Searchable layers.
        tracker: Takes the metrics of every epoch.

    Raises:
        ConfigError: No architecture is within the study's limit on cost.
    """
    settings, space, seed = run.study.cell, run.spaces[depth], run.seed(block, depth)
    blocks = run.num_blocks if settings.shared else 1
    trainer = run.trainer(block, settings, tracker or Tracker(), seed=seed, blocks=blocks)
    costs = None
    if settings.cost is not None:
        of_operations = operation_costs(
            space.operation_names, space.hidden_size, settings.cost, int(np.median(run.dev.lengths))
        )
        costs = Costs(kind=settings.cost, of_operations=of_operations, most=settings.max_cost)
        costs.check(space)
    return Search(
        space=space,
        trainer=trainer,
        options=find_strategy(settings)[1],
        candidates=settings.candidates,
        seed=seed,
        folder=run.nni / "inner",
        costs=costs,
    )


def starts_fresh(run: Run) -> bool:
    """Whether the block phase trains cells from random layers, and not from the weights that the search left."""
    start, seen, num_rows = run.study.block.start, run.study.cell.max_rows, len(run.train.rows)
    return start == "fresh" or (start == "auto" and 2 * (seen or num_rows) < num_rows)


def starts_general(run: Run) -> bool:
    """Whether the block phase's cells start from what they learnt on general text."""
    return run.study.general.cells > 0 and run.study.block.start != "cell"


def general_cells(
    run: Run, block: int, candidates: Sequence[Candidate], tracker: Tracker | None = None
) -> list[Candidate]:
    """The candidates with cells that were trained on general text; what starts alike is trained once.

    Args:
        run: Of the study.
        block: Number of the block.
        candidates: Of any weights.
        tracker: Takes the metrics of every epoch.
    """
    part = (tracker or Tracker()).part("general")
    study, folder = run.study, general_folder(run)
    assert folder is not None
    store, sizes = FeatureStore(folder / TEXTS), (run.train.hidden_size, run.study.student.hidden_size)
    edges, settings = run.edges[block : block + 2], replace(study.block, losses={"hidden_mse": 1.0}, max_rows=None)
    found = []
    for one in candidates:
        mark = fingerprint(one.shape, sizes, edges, to_dict(settings), study.student.precision, study.seed)
        file = folder / f"cell-{mark}.safetensors"
        pl.seed_everything(run.seed(block), verbose=False)
        fresh = one.fresh(*sizes)
        if (known := load_shared(file)) is not None:
            fresh.trained.load_state_dict(known)
        else:
            trainer = CellTrainer(
                train=store, dev=run.dev, edges=edges, settings=settings, precision=study.student.precision,
                seed=run.seed(block), report=partial(part.epoch, default=None),
            )  # fmt: skip
            trainer.start_maps([fresh.trained])
            with resume.apart(mark):
                trainer.fit_candidates([fresh.trained.train()], settings.epochs)
            save_shared(fresh.trained.state_dict(), file)
        found.append(fresh)
    return found


def operation_parts(run: Run, batch: int = 1) -> dict[str, Part]:
    """Every operation of a study's spaces, as a layer by itself."""
    width, sides = run.study.student.hidden_size, 1 + run.separate
    names = dict.fromkeys(name for space in run.spaces.values() for name in space.operation_names)
    found = {}
    for name in names:
        one = Candidate(space="sequential", depth=1, architecture={"layer_0": name})
        (found[name],) = cell_parts(one, width, sides=sides, batch=batch)
    return found


def measure_operations(run: Run) -> None:
    """Fill the machine's table while nothing else runs: the trials of the phases to come run beside each other.

    Not of spaces of graphs, which are parts as a whole.
    """
    if not all(issubclass(space.kind, Sequential) for space in run.spaces.values()):
        return
    teacher = model_part(run.load_teacher()[0], pairs=run.train.has_pairs)
    run.latencies.measure([teacher, *operation_parts(run).values()], around(run.latency_lengths))


def with_latencies(run: Run, candidates: Sequence[Candidate]) -> list[Candidate]:
    """The candidates with the latencies of their bodies by the machine's table."""
    width, sides = run.study.student.hidden_size, 1 + run.separate
    parts = {str(number): cell_parts(one, width, sides=sides) for number, one in enumerate(candidates)}
    latency_ms = run.latencies.latency_ms(parts, run.latency_lengths)
    return [replace(one, latency_ms=latency_ms[str(number)]) for number, one in enumerate(candidates)]


def with_replaced(run: Run, block: int, candidates: Sequence[Candidate]) -> list[Candidate]:
    """The trained candidates of a block with their errors in place of it, where these are asked for."""
    count = min(run.study.block.replaced_rows, len(run.dev))
    if not count:
        return list(candidates)
    rows = np.random.default_rng(run.study.seed).permutation(len(run.dev))[:count]
    batches = make_loader(FeatureDataset(run.dev, (), tokens=True, rows=rows), 64, shuffle=False)
    model = (run.load_encoder() or run.load_teacher()[0]).to(best_device())
    cells = [one.trained.eval().to(best_device()) for one in candidates]
    errors = replaced_errors(model, run.edges[block : block + 2], cells, batches, separate=run.separate)
    for cell in cells:
        cell.cpu()
    if errors is None:
        return list(candidates)
    return [replace(one, replaced=error) for one, error in zip(candidates, errors, strict=True)]


def read_rankings(run: Run) -> list[Result]:
    """The result of every block.

    Raises:
        PhaseError: A block has none.
    """
    rankings = [run.read("block", {"block": block}) for block in range(run.num_blocks)]
    if missing := [str(block) for block, ranking in enumerate(rankings) if ranking is None]:
        raise PhaseError(
            f"block {', '.join(missing)} has no ranking; make it with: bertnas block STUDY "
            "(or nnictl create --config experiment_configs/block.yml)"
        )
    return [ranking for ranking in rankings if ranking is not None]


def load_ranked(run: Run) -> list[list[Candidate]]:
    """Every block's candidates with their cells, best first.

    Raises:
        PhaseError: A block has none, or their weights are damaged.
    """
    sizes = run.train.hidden_size, run.study.student.hidden_size
    return [
        [one.load(run.folder("block", {"block": block}), *sizes) for one in read_candidates(ranking)]
        for block, ranking in enumerate(read_rankings(run))
    ]
