"""The student that a search gives against the best of as many random ones as are trained in the same time.

    python benchmarks/equal_time.py --glue GLUE_FOLDER [--tasks stsb] [--seeds 0 1 2] [--speedup 20]

A study as it is shipped gives one student of a budget: its time is that of the cell, block and supernet phases. In that
time random students of the same budget are trained: in every block no layer or any depth that is searched, equally
probable, then any cell of it; cells from fresh weights as long as searched ones are, then the whole student likewise;
of them the nearest to the teacher's answers on dev is taken. Scores are on GLUE's dev file, which neither looks at.
Seeds are of search, draws and training; the teacher is one. What is finished is not done again. Raw results go to
benchmarks/results/equal_time.json; the last line is one JSON object.
"""

import random
import time
from collections.abc import Iterator, Mapping, Sequence
from statistics import mean
from typing import Any

from common import RESULTS, Results, change, finish, make_stages, options_parser, start
from students import BEFORE, shipped, under

from nni_bertnas.config import Study
from nni_bertnas.data.batches import make_loader
from nni_bertnas.data.tokens import tokenize
from nni_bertnas.search.random_cells import sample_architecture
from nni_bertnas.stages.baselines import train_cells
from nni_bertnas.stages.run import Run
from nni_bertnas.stages.stage import ensure, load
from nni_bertnas.stages.students import FIDELITY, StudentMaker
from nni_bertnas.student.candidates import Candidate, no_layer
from nni_bertnas.tracking.tracker import Tracker
from nni_bertnas.training.metrics import evaluate_classifier
from search_space.cells import spell


def main() -> None:
    """Search, draw, train, print the figures."""
    parser = options_parser(__doc__, tasks=("stsb",), seeds=(0, 1, 2))
    parser.add_argument("--speedup", type=float, default=20.0)
    arguments = parser.parse_args()
    start(arguments.threads)
    results = Results(RESULTS / "equal_time.json")
    for task in arguments.tasks:
        for seed in arguments.seeds:
            name = f"{task} {arguments.speedup:g} {seed}"
            run = Run(under(of_seed(task, arguments.glue, seed), arguments.speedup))
            if f"{name} / searched" not in results:
                results[f"{name} / searched"] = searched(run, seed)
                print(name, results.data[f"{name} / searched"], flush=True)
            whole, spent = results.data[f"{name} / searched"]["seconds"], 0.0
            for number, drawn in enumerate(draw(run, seed)):
                key = f"{name} / random {number}"
                if key not in results:
                    results[key] = trained(run, drawn, seed, arguments.speedup)
                    print(key, results.data[key], flush=True)
                spent += results.data[key]["seconds"]
                results.data[key]["in_time"] = spent <= whole
                if spent > whole:
                    break
            results.write()
    finish(summary(results.data))


def of_seed(task: str, glue: str, seed: int) -> Study:
    """A study of a seed, with the teacher of the study as it is shipped."""
    study = shipped(task, glue)
    if seed == study.seed:
        return study
    run = Run(study)
    ensure(run, "teacher")
    teacher = {"model": str(run.folder("teacher")), "fine_tune": "never"}
    return change(study, name=f"{study.name}-seeds", seed=seed, teacher=teacher)


def searched(run: Run, seed: int) -> dict[str, Any]:
    """What the product makes, and how long that takes but for teacher, rows and features."""
    make_stages(run, *BEFORE)
    made = [(stage, unit) for stage in ("cell", "block") for unit in load(stage).units(run)]
    seconds = {stage: 0.0 for stage, _ in made}
    for stage, unit in made:
        seconds[stage] += ensure(run, stage, unit)["seconds"]
    result = ensure(run, "supernet", {"seed": seed})
    seconds["supernet"] = result["seconds"]
    own = result["student"]
    return {
        "cells": [spell(one) for one in result["architecture"]],
        "kept": result["kept"],
        "score": own[f"glue_dev_{run.task.metric}"],
        "dev": own[f"dev_{run.task.metric}"],
        FIDELITY: result[FIDELITY],
        "speedup": result["speedup"],
        "phases": seconds,
        "seconds": sum(seconds.values()),
    }


def draw(run: Run, seed: int) -> Iterator[list[Candidate]]:
    """Random students, no two alike."""
    generator, known, spaces = random.Random(seed), set[str](), run.spaces
    while True:
        cells = []
        for depth in generator.choices((0, *spaces), k=run.num_blocks):
            space = spaces.get(depth)
            cells.append(
                Candidate(space=space.name, depth=depth, architecture=sample_architecture(space, generator))
                if space
                else no_layer()
            )
        if str(cells) not in known:
            known.add(str(cells))
            yield cells


def trained(run: Run, drawn: Sequence[Candidate], seed: int, speedup: float) -> dict[str, Any]:
    """One random student; where it is too slow, that alone."""
    before = time.perf_counter()
    maker = StudentMaker(run, seed)
    fresh = [one.fresh(run.train.hidden_size, run.study.student.hidden_size) for one in drawn]
    now = maker.latency_ms(maker.new_student(fresh).fused())
    row: dict[str, Any] = {
        "cells": [spell(one.architecture) for one in drawn],
        "speedup": now["teacher"] / now["student"],
    }
    if row["speedup"] >= speedup:
        student, known = maker.distil(train_cells(run, drawn), run.study.supernet, Tracker())
        row[FIDELITY] = known[FIDELITY]
        rows = tokenize(maker.tokenizer, run.data.splits["glue_dev"], run.study.task.max_length)
        loaders = {"dev": maker.dev_loader, "score": make_loader(rows, 128, shuffle=False)}
        row |= {name: evaluate_classifier(student, one, run.task)[run.task.metric] for name, one in loaders.items()}
    return {**row, "seconds": time.perf_counter() - before}


def summary(found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """By task, budget and seed the scores in percent: searched, the random one that was nearest, all random ones."""
    figures: dict[str, Any] = {}
    for name in dict.fromkeys(key.partition(" / ")[0] for key in found):
        own = found[f"{name} / searched"]
        drawn = [one for key, one in found.items() if key.startswith(f"{name} / random ")]
        others = [one for one in drawn if "score" in one and one["in_time"]]
        figures[name] = {"searched": round(100 * own["score"], 2), "students": len(others)}
        if others:
            best = min(others, key=lambda one: one[FIDELITY])
            figures[name] |= {
                "random": round(100 * best["score"], 2),
                "mean random": round(100 * mean(one["score"] for one in others), 2),
                f"{FIDELITY}, searched and random": [round(own[FIDELITY], 4), round(best[FIDELITY], 4)],
            }
    return figures


if __name__ == "__main__":
    main()
