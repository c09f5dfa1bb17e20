"""Which search finds better cells than chance: block scores of searched, random and uniform cells of equal size.

    python benchmarks/search_quality.py --glue GLUE_FOLDER [--tasks mrpc stsb sst2] [--seeds 0 1 2] [--strategies ...]
        [--space layers] [--depth 3] [--searches-only] [--minutes 30] [--threads 2]

The teacher is MiniLM, fine-tuned on the whole task, the same for all seeds; features of all rows of MRPC and STS-B and
of 10,000 of SST-2. One block (layers 2 to 4) is searched at width 128, and no cell may have more than --max-params
parameters in its operations. Every strategy runs through NNI with the settings in STRATEGIES, of about equal wall time;
its best architecture is then trained from fresh weights for --final-epochs epochs, just as 20 random cells of three
quarters of the allowed size or more, and every uniform cell within it. Block scores are on rows held out of train.

What is finished is not done again, so it can be run in pieces; --minutes stops it after the work in hand. Everything
goes to runs/search_quality.json; benchmarks/results/search_quality.json has it without the inherited scores of cells
that nobody trained alone, search_quality.png is a plot; the last line is one JSON object.
"""

import argparse
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from common import RESULTS, Results, change, finish, glue_study, options_parser, start
from scipy.stats import kendalltau

from nni_bertnas.config import Study
from nni_bertnas.search.random_cells import sample_architecture, uniform_architectures
from nni_bertnas.search.search import Search, mean_score
from nni_bertnas.search.strategies import STRATEGIES as ROWS
from nni_bertnas.search.strategies import OneShotOptions
from nni_bertnas.stages.cells import make_search
from nni_bertnas.stages.run import Run
from nni_bertnas.stages.stage import ensure
from nni_bertnas.training.trainer import pl
from search_space.cells import Architecture, spell

MAX_TRAIN_ROWS = {"sst2": 10_000}
BLOCK = 1
RANDOM_CELLS = 20
# What is searched -> strategy, epochs, options.
STRATEGIES: dict[str, tuple[str, int, dict[str, Any]]] = {
    "darts": ("darts", 2, {}),
    "darts, by probability": ("darts", 2, {"ranking": "probability"}),
    "darts, 6 epochs": ("darts", 6, {"ranking": "probability"}),
    "darts, paths ranked": ("darts", 2, {"ranking": "weights"}),
    "gumbel_darts": ("gumbel_darts", 2, {}),
    "proxyless": ("proxyless", 4, {}),
    "random_one_shot": ("random_one_shot", 12, {}),
    "random_one_shot, 36 epochs": ("random_one_shot", 36, {}),
    "random": ("random", 1, {"samples": 20}),
    "evolution": ("evolution", 1, {"samples": 20, "population": 8}),
    "tpe": ("tpe", 1, {"samples": 20}),
}

DEFAULT = ["darts", "gumbel_darts", "random_one_shot", "random", "evolution"]


def make_study(name: str, options: argparse.Namespace, seed: int = 0, strategy: str = "evolution") -> Study:
    """One task's study, with the settings of a search."""
    row, epochs, own = STRATEGIES[strategy]
    if issubclass(ROWS[row].options, OneShotOptions):
        own = {"candidate_epochs": 1, "rank_limit": 2000, "rank_rows": 100, **own}
    settings = {
        "space": options.space,
        "strategy": row,
        "depths": [options.depth],
        "epochs": epochs,
        "options": own,
        "cost": "num_params",
        "max_cost": float(options.max_params),
        "candidates": 3,
        "max_rows": None,
    }
    study = glue_study(name, options.glue, MAX_TRAIN_ROWS.get(name))
    return change(study, seed=seed, student={"hidden_size": 128}, cell=settings, transfer={"reviews": 0})


def train_alone(search: Search, architecture: Architecture, epochs: int, seed: int) -> float:
    """The block score of an architecture trained from fresh weights."""
    pl.seed_everything(seed, verbose=False)
    return search.trainer.fit_cells(search.build(architecture), epochs)[0]


def cost(search: Search, architecture: Architecture) -> float:
    """Parameters of a cell's operations."""
    assert search.costs is not None
    return search.costs.of(architecture)


def random_cells(search: Search, count: int, most: float) -> list[Architecture]:
    """Distinct cells, drawn uniformly, of three quarters of the allowed size or more."""
    generator, found = random.Random(0), dict[str, Architecture]()
    while len(found) < count:
        architecture = sample_architecture(search.space, generator)
        if 0.75 * most <= cost(search, architecture) <= most:
            found[spell(architecture)] = architecture
    return list(found.values())


def uniform_cells(search: Search) -> list[Architecture]:
    """The same operation in every layer, within the allowed size."""
    return [cell for cell in uniform_architectures(search.space).values() if search.affordable(cell)]


def open_search(study: Study, seed: int, options: argparse.Namespace) -> Search:
    """A search of one seed; the teacher is of the study's, so that all seeds have the same."""
    run = Run(study)
    ensure(run, "features")
    pl.seed_everything(seed, verbose=False)
    search = replace(make_search(run, BLOCK, options.depth), seed=seed)
    search.trainer.seed = seed
    return search


def run_search(task: str, strategy: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """One search, and its best architecture trained alone."""
    study = make_study(task, options, strategy=strategy)
    search = open_search(study, seed, options)
    begin = time.perf_counter()
    found = ROWS[study.cell.strategy].load()(search)
    seconds = time.perf_counter() - begin
    groups = sorted(found.groups, key=mean_score)
    best = groups[0][0].architecture
    return {
        "architecture": dict(best),
        "num_params": cost(search, best),
        "searched_score": mean_score(groups[0]),
        "seconds": seconds,
        "score": train_alone(search, best, options.final_epochs, seed),
        "candidates": [[spell(one.architecture), one.inherited, one.score] for (one,) in groups],
        "paths": {name: score for name, (_, score) in found.paths.items()},
    }


def units(options: argparse.Namespace) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Names of all units of work with what does them, most wanted first."""
    for seed in options.seeds:
        for task in options.tasks:
            if seed == options.seeds[0] and not options.searches_only:
                yield from cells_alone(task, options)
            for strategy in options.strategies:
                name = f"{options.prefix}{task} / {strategy} / seed {seed}"
                yield name, partial(run_search, task, strategy, seed, options)


def cells_alone(task: str, options: argparse.Namespace) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Uniform and random cells, each trained from fresh weights."""
    search = open_search(make_study(task, options), 0, options)
    cells = [("uniform cell", cell) for cell in uniform_cells(search)]
    cells += [("random cell", cell) for cell in random_cells(search, RANDOM_CELLS, options.max_params)]
    for kind, cell in cells:

        def work(cell: Architecture = cell) -> dict[str, Any]:
            return {"num_params": cost(search, cell), "score": train_alone(search, cell, options.final_epochs, 0)}

        yield f"{options.prefix}{task} / {kind} / {spell(cell)}", work


def trim(data: dict[str, Any]) -> dict[str, Any]:
    """The raw results without the inherited scores of cells that were not trained alone."""
    alone = {name.split(" / ")[2] for name in data if " cell / " in name}
    alone |= {spell(one["architecture"]) for one in data.values() if "architecture" in one}
    return {
        name: {**one, "paths": {cell: score for cell, score in one["paths"].items() if cell in alone}}
        if "paths" in one
        else one
        for name, one in data.items()
    }


def summary(data: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Per task the mean scores, how many of the random cells each search beats, and Kendall's tau.

    Tau is between inherited scores and those after training alone, over the random, uniform and searched cells.
    """
    result: dict[str, Any] = {}
    for task in options.tasks:
        start = f"{options.prefix}{task} / "
        units = {name.removeprefix(start): one for name, one in data.items() if name.startswith(start)}
        chance, uniform = (
            {name.split(" / ")[1]: one["score"] for name, one in units.items() if name.startswith(f"{kind} / ")}
            for kind in ("random cell", "uniform cell")
        )
        searches = {
            strategy: [one for name, one in units.items() if name.startswith(f"{strategy} / seed")]
            for strategy in options.strategies
        }
        alone = {spell(one["architecture"]): one["score"] for ones in searches.values() for one in ones}
        alone |= chance | uniform
        row: dict[str, Any] = {}
        if chance:
            row["random cells"] = {
                "mean": mean(chance.values()),
                "standard deviation": stdev(chance.values()),
                "best": min(chance.values()),
                "cells": len(chance),
            }
        if uniform:
            row["uniform cells"] = {"best": min(uniform.values()), "cells": len(uniform)}
        for strategy, ones in searches.items():
            if not ones:
                continue
            scores = [one["score"] for one in ones]
            row[strategy] = {
                "score": mean(scores),
                "scores": scores,
                "searched_score": mean(one["searched_score"] for one in ones),
                "seconds": mean(one["seconds"] for one in ones),
                "num_params": mean(one["num_params"] for one in ones),
                "beats": mean(mean(score < other for other in chance.values()) for score in scores) if chance else None,
                "kendall_tau": list(filter(None, (inherited_ranks(one["paths"], alone) for one in ones))),
            }
        result[task] = row
    return result


def inherited_ranks(paths: dict[str, float], alone: dict[str, float]) -> dict[str, Any]:
    """Kendall's tau of inherited scores and those after training alone, of all cells and of those alike.

    Alike are cells with as many attention layers; of each kind the mean scores stand beside its tau.
    """
    cells = [name for name in alone if name in paths]
    if len(cells) < 10:
        return {}

    def one(names: list[str]) -> dict[str, float]:
        scores = [paths[name] for name in names], [alone[name] for name in names]
        tau = float(kendalltau(*scores).statistic)
        return {"cells": len(names), "tau": tau, "inherited": mean(scores[0]), "alone": mean(scores[1])}

    kinds: dict[int, list[str]] = {}
    for name in cells:
        kinds.setdefault(name.count("attention"), []).append(name)
    return {**one(cells), "attentions": {kind: one(kinds[kind]) for kind in sorted(kinds) if len(kinds[kind]) > 2}}


def plot(result: dict[str, Any], data: dict[str, Any], options: argparse.Namespace, path: Path) -> None:
    """Random cells as a cloud, uniform ones and each search's three seeds beside them."""
    from matplotlib.figure import Figure

    tasks = {task: row for task, row in result.items() if "random cells" in row}
    figure = Figure(figsize=(4.2 * max(1, len(tasks)), 4.8), layout="constrained")
    for number, (task, row) in enumerate(tasks.items()):
        axes = figure.add_subplot(1, len(tasks), number + 1)
        start = f"{options.prefix}{task} / "
        columns = {
            f"{kind}s": [one["score"] for name, one in data.items() if name.startswith(f"{start}{kind} / ")]
            for kind in ("random cell", "uniform cell")
        }
        columns |= {name: one["scores"] for name, one in row.items() if "scores" in one}
        for place, scores in enumerate(columns.values()):
            axes.plot(place + np.linspace(-0.15, 0.15, len(scores)), scores, "o", alpha=0.7, markersize=5)
        axes.axhline(row["random cells"]["mean"], color="grey", linewidth=0.8)
        axes.set_xticks(range(len(columns)), columns, rotation=70)
        axes.set_title(task)
        axes.set_ylabel("block score (lower is better)")
        # Cells of pools alone lie far above all others.
        axes.set_ylim(top=max(columns["random cells"]) + 2 * row["random cells"]["standard deviation"])
    figure.savefig(path, dpi=110)


def main() -> None:
    """Run what is missing, then print the table."""
    parser = options_parser(__doc__, tasks=("mrpc", "stsb", "sst2"), seeds=(0, 1, 2))
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=DEFAULT)
    parser.add_argument("--space", default="layers")
    parser.add_argument("--depth", type=int, default=3)
    parser.add_argument("--max-params", type=int, default=230_000, help="in a cell's operations")
    parser.add_argument("--final-epochs", type=int, default=4)
    parser.add_argument("--searches-only", action="store_true", help="no random and uniform cells")
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--work", type=Path, default=Path("runs") / "search_quality.json")
    parser.add_argument("--output", type=Path, default=RESULTS / "search_quality.json")
    options = parser.parse_args()
    options.prefix = "" if options.space == "layers" else f"{options.space}: "
    start(options.threads)
    results, begin = Results(options.work), time.perf_counter()
    for name, work in units(options):
        if name not in results and time.perf_counter() - begin < options.minutes * 60:
            results[name] = work()
            print(name, {k: v for k, v in results.data[name].items() if k not in ("paths", "candidates")}, flush=True)
    kept = Results(options.output)
    kept.data = trim(results.data)
    kept.write()
    result = summary(results.data, options)
    for task, row in result.items():
        for name, one in row.items():
            print(f"{task:6s} {name:22s}", {key: value for key, value in one.items() if key != "scores"})
    plot(result, results.data, options, options.output.with_suffix(".png"))
    finish(result)


if __name__ == "__main__":
    main()
