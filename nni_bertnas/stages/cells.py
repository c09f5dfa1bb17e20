"""What the stages have in common whose results are ranked candidates of one block."""

import numpy as np

from nni_bertnas.errors import PhaseError
from nni_bertnas.search.search import Costs, Search
from nni_bertnas.search.strategies import find_strategy
from nni_bertnas.stages.run import Result, Run
from nni_bertnas.student.candidates import Candidate
from nni_bertnas.student.cost import operation_costs
from nni_bertnas.tracking import Tracker
from search_space.cells import spell


def read_candidates(result: Result) -> list[Candidate]:
    """The candidates of a result, best first."""
    return [Candidate.from_dict(one) for one in result["candidates"]]


def metrics(run: Run, result: Result) -> dict[str, float]:
    """What NNI is told: score and costs of the best candidate."""
    best = result["candidates"][0]
    return {"default": best["score"], **{name: best[name] for name in ("num_params", "num_flops", "latency_ms")}}


def describe(run: Run, result: Result) -> str:
    """The best candidate in one line."""
    best = read_candidates(result)[0]
    return (
        f"score {best.score:.4f}, {best.num_params:,} parameters, {best.latency_ms:.2f} ms: {spell(best.architecture)}"
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
