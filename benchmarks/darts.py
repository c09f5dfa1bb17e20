"""What to keep of a trained DARTS supernet: one training a seed, several rules, each rule's cell trained alone.

    python benchmarks/darts.py --glue GLUE_FOLDER [--tasks mrpc] [--seeds 0 1 2 3 4] [--epochs 2]
        [--options mixture_dropout=0.75] [--evolution] [--random 8] [--study-seed 0] [--threads 2]

Block, space and limit are those of search_quality.py. All seeds of a search work on one teacher, which is of the seed
of the study; what is compared with is on the same: evolution (20 samples), and random cells of three quarters of the
allowed size or more. A rule says how probable operations are (the softmax of the architecture weights, or what taking
one out harms), and whether the candidates are the best or, as the product does it, of every kind of cell the best
first. Three are trained for an epoch from the supernet's weights; the best is trained from fresh weights for four. What
is finished is not done again. Raw results go to benchmarks/results/darts.json; the last line is one JSON object: by
task and rule the block scores by seed.
"""

import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np
import search_quality as quality
import yaml
from common import RESULTS, Results, finish, options_parser, start
from nni.nas.strategy import DARTS

from nni_bertnas.search.differentiable import most_probable, perturbation, train_supernet
from nni_bertnas.search.search import Search, mean_score
from nni_bertnas.search.strategies import STRATEGIES, DartsOptions
from nni_bertnas.search.watch import probabilities
from nni_bertnas.student.candidates import kind_of, kinds_first
from search_space.cells import Architecture, spell
from search_space.spaces import extract_cells

_COUNT = 3  # candidates of a rule


def main() -> None:
    """Train, choose, train alone, print the figures."""
    parser = options_parser(__doc__, tasks=("mrpc",), seeds=(0, 1, 2, 3, 4))
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--options", nargs="*", default=[], help="of cell.options, as name=value")
    parser.add_argument("--evolution", action="store_true", help="evolution in place of DARTS")
    parser.add_argument("--random", type=int, default=0, help="random cells, before anything else")
    parser.add_argument("--study-seed", type=int, default=0, help="of the teacher, and of cells trained alone")
    parser.add_argument("--output", type=Path, default=RESULTS / "darts.json")
    options = parser.parse_args()
    options.space, options.depth, options.max_params = "layers", 3, 230_000
    start(options.threads)
    results = Results(options.output)
    how = "evolution" if options.evolution else ", ".join([f"{options.epochs} epochs", *options.options])
    for task in options.tasks:
        name = f"{task}, teacher {options.study_seed}"
        for cell in quality.random_cells(open_search(task, 0, options), options.random, options.max_params):
            results[f"{name} / random / {spell(cell)}"] = alone(results, task, cell, options)
        for seed in options.seeds:
            key = f"{name} / {how} / seed {seed}"
            if key not in results:
                results[key] = (evolved if options.evolution else one_seed)(results, task, seed, options)
                print(key, results.data[key], flush=True)
    finish(summary(results.data))


def open_search(task: str, seed: int, options: Any) -> Search:
    """A search of the block whose supernet trains for so many epochs."""
    strategy = "evolution" if options.evolution else "darts"
    study = quality.make_study(task, options, options.study_seed, strategy)
    search = quality.open_search(study, seed, options)
    if isinstance(search.options, DartsOptions):
        search.trainer.settings = dataclasses.replace(search.trainer.settings, epochs=options.epochs)
        given = {name: yaml.safe_load(value) for name, _, value in (one.partition("=") for one in options.options)}
        search = dataclasses.replace(search, options=dataclasses.replace(search.options, **given))
    return search


def evolved(results: Results, task: str, seed: int, options: Any) -> dict[str, Any]:
    """The best of 20 architectures, an epoch each."""
    search, before = open_search(task, seed, options), time.perf_counter()
    best = min(STRATEGIES["evolution"].load()(search).groups, key=mean_score)[0].architecture
    seconds = time.perf_counter() - before
    return {"seconds": seconds, "takes": {"evolution": [spell(best), alone(results, task, best, options)]}}


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
    key = f"{task}, teacher {options.study_seed} / cell / {spell(architecture)}"
    if key not in results:
        results[key] = quality.train_alone(open_search(task, 0, options), architecture, 4, 0)
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
