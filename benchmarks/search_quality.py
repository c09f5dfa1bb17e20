"""Which search finds better cells than chance: block scores of searched, random and uniform cells of equal size.

    python benchmarks/search_quality.py --glue GLUE_FOLDER [--tasks mrpc stsb sst2] [--seeds 0 1 2] [--strategies ...]
        [--space layers] [--depth 3] [--searches-only] [--minutes 30] [--threads 2]

The teacher is MiniLM, fine-tuned on the whole task; features of all rows of MRPC and STS-B and of 10,000 of SST-2. One
block (layers 2 to 4) is searched at width 128, and no cell may have more than --max-params parameters in its
operations. Every strategy runs through NNI with the settings in STRATEGIES, of about equal wall time; its best
architecture is then trained from fresh weights for --final-epochs epochs, just as 20 random cells of three quarters of
the allowed size or more, and every uniform cell within it. Block scores are on rows held out of train.

What is finished is not done again, so it can be run in pieces; --minutes stops it after the work in hand. Everything
goes to runs/search_quality.json; benchmarks/results/search_quality.json has it without the inherited scores of cells
that nobody trained alone, search_quality.png is a plot; the last line is one JSON object.
"""

import argparse
import dataclasses
import json
import os
import random
import time
from pathlib import Path
from statistics import mean, stdev
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from scipy.stats import kendalltau

from nni_bertnas import quiet_libraries
from nni_bertnas.artifacts import RunDirectory
from nni_bertnas.config import Study, load_study
from nni_bertnas.search.random_cells import sample_architecture, uniform_architectures
from nni_bertnas.search.strategies import STRATEGIES as SEARCHES
from nni_bertnas.search.strategies import Search
from nni_bertnas.stages.cell import make_search
from nni_bertnas.store.reader import ensure_features
from nni_bertnas.training.teacher import ensure_teacher
from nni_bertnas.training.trainer import pl
from search_space.cells import Architecture, spell

HERE = Path(__file__).parent
TARGET = HERE / "results" / "search_quality.json"
STUDIES = HERE.parent / "experiment_configs" / "studies" / "glue"
MAX_TRAIN_ROWS = {"sst2": 10_000}
BLOCK = 1
RANDOM_CELLS = 20
STRATEGIES: dict[str, dict[str, Any]] = {
    "darts": {"strategy": "darts", "epochs": 2},
    "darts, 6 epochs": {"strategy": "darts", "epochs": 6},
    "darts, paths ranked": {"strategy": "darts", "epochs": 2, "ranking": "weights"},
    "gumbel_darts": {"strategy": "gumbel_darts", "epochs": 2},
    "proxyless": {"strategy": "proxyless", "epochs": 4},
    "random_one_shot": {"strategy": "random_one_shot", "epochs": 12},
    "random_one_shot, 36 epochs": {"strategy": "random_one_shot", "epochs": 36},
    "random": {"strategy": "random", "epochs": 1, "samples": 20},
    "evolution": {"strategy": "evolution", "epochs": 1, "samples": 20, "population": 8},
    "tpe": {"strategy": "tpe", "epochs": 1, "samples": 20},
}

DEFAULT = ["darts", "gumbel_darts", "random_one_shot", "random", "evolution"]


def make_study(name: str, options: argparse.Namespace, seed: int = 0, **cell: Any) -> Study:
    """One task's study; where train is cut, the teacher is the one of the uncut study, as it is."""
    study = load_study(STUDIES / f"{name}.yml")
    study = dataclasses.replace(study, task=dataclasses.replace(study.task, data_dir=options.glue))
    rows = MAX_TRAIN_ROWS.get(name)
    if rows is not None:
        ensure_teacher(study)
        teacher = dataclasses.replace(study.teacher, model=str(RunDirectory(study).teacher), fine_tune="never")
        task = dataclasses.replace(study.task, max_train_rows=rows)
        study = dataclasses.replace(study, name=f"{study.name}-{rows}", task=task, teacher=teacher)
    settings = {
        "space": options.space,
        "cost": "num_params",
        "max_cost": float(options.max_params),
        "candidates": 3,
        "candidate_epochs": 1,
        "rank_limit": 2000,
        "rank_rows": 100,
        "max_rows": None,
        **cell,
    }
    return dataclasses.replace(
        study,
        seed=seed,
        student=dataclasses.replace(study.student, hidden_size=128),
        cell=dataclasses.replace(study.cell, **settings),
    )


def train_alone(search: Search, architecture: Architecture, epochs: int, seed: int) -> float:
    """The block score of an architecture trained from fresh weights."""
    pl.seed_everything(seed, verbose=False)
    evaluator = search.make_evaluator()
    cells = [search.space.build(architecture)]
    evaluator.start_maps(cells)
    return evaluator.fit_cells(cells, epochs)[0]


def random_cells(search: Search, count: int) -> list[Architecture]:
    """Distinct cells, drawn uniformly, of three quarters of the allowed size or more."""
    generator = random.Random(0)
    most = search.config.max_cost or 0.0
    choices, found = search.space.choices(), dict[str, Architecture]()
    while len(found) < count:
        architecture = sample_architecture(choices, search.space.space, generator)
        if 0.75 * most <= search.cost(architecture) <= most:
            found[spell(architecture)] = architecture
    return list(found.values())


def uniform_cells(search: Search) -> list[Architecture]:
    """The same operation in every layer, within the allowed size."""
    space = search.space
    cells = uniform_architectures(space.space, space.depth, space.operations, space.hidden_size)
    return [cell for cell in cells.values() if search.affordable(cell)]


class Results:
    """The raw results, written after every unit of work."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def __contains__(self, name: str) -> bool:
        return name in self.data

    def __setitem__(self, name: str, value: Any) -> None:
        self.data[name] = value
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.data, indent=1))


def run_search(study: Study, options: argparse.Namespace, edges: list[int]) -> dict[str, Any]:
    """One search, and its best architecture trained alone."""
    pl.seed_everything(study.seed, verbose=False)
    search = make_search(study, BLOCK, options.depth, edges)
    start = time.perf_counter()
    found = sorted(SEARCHES[study.cell.strategy](search), key=lambda one: one.score)
    seconds = time.perf_counter() - start
    best = found[0]
    return {
        "architecture": dict(best.architecture),
        "num_params": search.cost(best.architecture),
        "searched_score": best.score,
        "seconds": seconds,
        "score": train_alone(search, best.architecture, options.final_epochs, study.seed),
        "candidates": [[spell(one.architecture), one.inherited, one.score] for one in found],
        "paths": {name: score for name, (_, score) in search.paths.items()},
    }


def units(options: argparse.Namespace) -> Any:
    """Names of all units of work with what does them, most wanted first."""
    for seed in options.seeds:
        for task in options.tasks:
            if seed == options.seeds[0] and not options.searches_only:
                study = make_study(task, options)
                ensure_teacher(study)
                edges = ensure_features(study)["edges"]
                search = make_search(study, BLOCK, options.depth, edges)
                for kind, cells in (
                    ("uniform cell", uniform_cells(search)),
                    ("random cell", random_cells(search, RANDOM_CELLS)),
                ):
                    for cell in cells:
                        name = f"{options.prefix}{task} / {kind} / {spell(cell)}"
                        yield (
                            name,
                            lambda search=search, cell=cell: {
                                "num_params": search.cost(cell),
                                "score": train_alone(search, cell, options.final_epochs, 0),
                            },
                        )
            for strategy in options.strategies:
                study = make_study(task, options, seed, **STRATEGIES[strategy])
                name = f"{options.prefix}{task} / {strategy} / seed {seed}"
                yield name, lambda study=study: run_search(study, options, ensure_features(study)["edges"])


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
            taus = []
            for one in ones:
                pairs = [(one["paths"][name], score) for name, score in alone.items() if name in one["paths"]]
                if len(pairs) >= 10:
                    taus.append({"tau": float(kendalltau(*zip(*pairs, strict=True)).statistic), "cells": len(pairs)})
            row[strategy] = {
                "score": mean(scores),
                "scores": scores,
                "searched_score": mean(one["searched_score"] for one in ones),
                "seconds": mean(one["seconds"] for one in ones),
                "num_params": mean(one["num_params"] for one in ones),
                "beats": mean(mean(score < other for other in chance.values()) for score in scores) if chance else None,
                "kendall_tau": taus,
            }
        result[task] = row
    return result


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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--glue", required=True, help="folder that holds MRPC/, STS-B/ and SST-2/")
    parser.add_argument("--tasks", nargs="+", default=["mrpc", "stsb", "sst2"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=DEFAULT)
    parser.add_argument("--space", default="layers")
    parser.add_argument("--depth", type=int, default=3)
    parser.add_argument("--max-params", type=int, default=230_000, help="in a cell's operations")
    parser.add_argument("--final-epochs", type=int, default=4)
    parser.add_argument("--searches-only", action="store_true", help="no random and uniform cells")
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("runs") / TARGET.name)
    parser.add_argument("--output", type=Path, default=TARGET)
    options = parser.parse_args()
    options.prefix = "" if options.space == "layers" else f"{options.space}: "
    quiet_libraries()
    torch.set_num_threads(options.threads)
    results = Results(options.work)
    start = time.perf_counter()
    for name, work in units(options):
        if name not in results and time.perf_counter() - start < options.minutes * 60:
            results[name] = work()
            print(name, {k: v for k, v in results.data[name].items() if k not in ("paths", "candidates")}, flush=True)
    options.output.write_text(json.dumps(trim(results.data), indent=1))
    result = summary(results.data, options)
    for task, row in result.items():
        for name, one in row.items():
            print(f"{task:6s} {name:22s}", {key: value for key, value in one.items() if key != "scores"})
    plot(result, results.data, options, options.output.with_suffix(".png"))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
