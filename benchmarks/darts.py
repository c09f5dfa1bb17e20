"""What to keep of a trained DARTS supernet: one training a seed, several rules, each rule's cell trained alone.

    python benchmarks/darts.py --glue GLUE_FOLDER [--tasks mrpc] [--seeds 0 1 2 3 4] [--epochs 2] [--dropout 0]
        [--threads 2]

Block, space and limit are those of search_quality.py, whose random cells and evolution (`--strategies evolution`) are
what to compare with. A rule says how probable operations are (the softmax of the architecture weights, or what taking
one out harms; with --dropout the inherited scores of all paths, too), and whether the candidates are the best or, as
the product does it, of every kind of cell the best first. Three are trained for an epoch from the supernet's weights;
the best is trained from fresh weights for four. What is finished is not done again. Raw results go to
benchmarks/results/darts.json; the last line is one JSON object: by task and rule the block scores by seed.
"""

import dataclasses
import time
from typing import Any

import numpy as np
import search_quality as quality
from common import RESULTS, Results, finish, options_parser, start
from nni.nas.strategy import DARTS

from nni_bertnas.search.differentiable import most_probable, perturbation, train_supernet
from nni_bertnas.search.one_shot import rank_paths
from nni_bertnas.search.search import Search
from nni_bertnas.search.strategies import DartsOptions
from nni_bertnas.search.watch import probabilities
from nni_bertnas.stages.cells import make_search
from nni_bertnas.stages.run import Run
from nni_bertnas.stages.stage import ensure
from nni_bertnas.student.candidates import kind_of, kinds_first
from nni_bertnas.training.trainer import pl
from search_space.cells import Architecture, spell
from search_space.spaces import extract_cells

_COUNT = 3  # candidates of a rule


def main() -> None:
    """Train, choose, train alone, print the figures."""
    parser = options_parser(__doc__, tasks=("mrpc",), seeds=(0, 1, 2, 3, 4))
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--dropout", type=float, default=0.0, help="cell.options.mixture_dropout")
    options = parser.parse_args()
    options.space, options.depth, options.max_params = "layers", 3, 230_000
    start(options.threads)
    results = Results(RESULTS / "darts.json")
    for task in options.tasks:
        for seed in options.seeds:
            key = f"{task} / {options.epochs} epochs, dropout {options.dropout:g} / seed {seed}"
            if key not in results:
                results[key] = one_seed(results, task, seed, options)
                print(key, results.data[key]["takes"], flush=True)
    finish(summary(results.data))


def open_search(task: str, seed: int, options: Any) -> Search:
    """A search of the block whose supernet trains for so many epochs."""
    run = Run(quality.make_study(task, options, seed, "darts"))
    ensure(run, "features")
    pl.seed_everything(seed, verbose=False)
    search = make_search(run, quality.BLOCK, options.depth)
    search.trainer.settings = dataclasses.replace(search.trainer.settings, epochs=options.epochs)
    assert isinstance(search.options, DartsOptions)
    darts = dataclasses.replace(search.options, mixture_dropout=options.dropout)
    return dataclasses.replace(search, options=darts)


def one_seed(results: Results, task: str, seed: int, options: Any) -> dict[str, Any]:
    """One supernet, and what every rule makes of it."""
    search, before = open_search(task, seed, options), time.perf_counter()
    supernet, _ = train_supernet(search, DARTS)
    row: dict[str, Any] = {"supernet_seconds": time.perf_counter() - before}
    ranked = {}
    for rule, shares in (
        ("probability", lambda: probabilities(supernet)),
        ("perturbation", lambda: perturbation(search, supernet)),
    ):
        before = time.perf_counter()
        ranked[rule] = [one for one in most_probable(search.space, shares(), 5000) if search.affordable(one)]
        row[f"{rule}_seconds"] = time.perf_counter() - before
    if options.dropout:
        paths = sorted(rank_paths(search, supernet).values(), key=lambda path: path[1])
        ranked["weights"] = [architecture for architecture, _ in paths]
    rules = {rule: found[:_COUNT] for rule, found in ranked.items()}
    rules |= {f"{rule}, unlike": kinds_first(found, kind_of)[:_COUNT] for rule, found in ranked.items()}
    trained: dict[str, float] = {}
    row |= {"candidates": trained, "takes": {}}
    for rule, candidates in rules.items():
        for one in candidates:
            if spell(one) not in trained:
                trained[spell(one)] = float(np.mean(search.trainer.fit_cells(extract_cells(supernet, one), 1)))
        best = min(candidates, key=lambda one: trained[spell(one)])
        row["takes"][rule] = [spell(best), alone(results, task, best, options)]
    return row


def alone(results: Results, task: str, architecture: Architecture, options: Any) -> float:
    """The block score after four epochs from fresh weights of seed 0."""
    key = f"{task} / cell / {spell(architecture)}"
    if key not in results:
        search = open_search(task, 0, options)
        results[key] = quality.train_alone(search, architecture, 4, 0)
    return float(results.data[key])


def summary(found: dict[str, Any]) -> dict[str, dict[str, list[float]]]:
    """Block scores by task, training and rule, in the order of the seeds."""
    figures: dict[str, dict[str, list[float]]] = {}
    for key in sorted(key for key in found if " / seed " in key):
        group = figures.setdefault(key.rpartition(" / ")[0], {})
        for rule, (_, score) in found[key]["takes"].items():
            group.setdefault(rule, []).append(round(score, 4))
    return figures


if __name__ == "__main__":
    main()
