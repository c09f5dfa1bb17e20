"""What the students of the GLUE studies reach at two speeds, as `bertnas run` makes them from the studies in glue/.

    python benchmarks/students.py --glue GLUE_FOLDER [--tasks stsb mrpc] [--seeds 0 1 2] [--speedups 10 20]

One teacher and one search per task (of the study's own seed); the students are trained with every seed and budget.
Scores are on GLUE's dev files (glue_dev; of `--tasks demo` on test), which neither training nor choice looks at. What
is finished is reused, so it can be run in pieces. At the end of a task its students and its teacher are timed in the
same turns, which counts only where nothing runs beside it (`--measure` times them once more and does nothing else):
batch 1, one thread, 64 word pieces for single texts and the task's own lengths for pairs, in every runtime; budgets are
of the study's. Raw results go to benchmarks/results/students.json; the last line is one JSON object. About 15 minutes
per task and 3 per student on two cores.
"""

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

from common import RESULTS, Results, change, finish, glue_study, make_stages, options_parser, start

from nni_bertnas.config import BudgetSettings, Study
from nni_bertnas.data.models import load_classifier
from nni_bertnas.stages import STAGES
from nni_bertnas.stages.run import Run
from nni_bertnas.stages.stage import ensure
from nni_bertnas.student.cost import measure_latency_ms, model_call
from nni_bertnas.student.runtimes import RUNTIMES
from search_space.cells import spell

_ROUNDS = 5
BEFORE = [name for name in STAGES if name not in ("supernet", "frontier", "baselines")]


def main() -> None:
    """Make the students, write the results, print the figures."""
    parser = options_parser(__doc__, tasks=("stsb", "mrpc", "sst2", "cola"), seeds=(0, 1, 2))
    parser.add_argument("--speedups", nargs="+", type=float, default=[10.0, 20.0])
    parser.add_argument("--measure", action="store_true", help="only time the finished students once more")
    arguments = parser.parse_args()
    start(arguments.threads)
    results = Results(RESULTS / "students.json")
    for name in arguments.tasks:
        study = shipped(name, arguments.glue)
        if not arguments.measure:
            make(results, name, study, arguments.speedups, arguments.seeds)
        measure(results, name, Run(study))
    finish(summary(results.data))


def shipped(task: str, glue: str, profile: str | None = None) -> Study:
    """A study as it is shipped, or of a profile, single texts timed at 64 word pieces."""
    study = glue_study(task, glue, profile=profile)
    return study if Run(study).task.pairs else change(study, supernet={"latency_length": 64})


def under(study: Study, speedup: float) -> Study:
    """A study whose students have so many times the teacher's speed at least."""
    return change(study, supernet={"budget": BudgetSettings(min_speedup=speedup)})


def make(results: Results, name: str, study: Study, speedups: Sequence[float], seeds: Sequence[int]) -> None:
    """The students of one task that are not there yet."""
    before = time.perf_counter()
    make_stages(Run(study), *BEFORE)
    print(name, "search and what comes before", f"{time.perf_counter() - before:.0f} s", flush=True)
    for speedup in speedups:
        run = Run(under(study, speedup))
        for seed in seeds:
            key = f"{name} {speedup:g} {seed}"
            if key not in results:
                result = ensure(run, "supernet", {"seed": seed})
                kept = folder(run, key)
                shutil.rmtree(kept, ignore_errors=True)
                shutil.copytree(run.folder("supernet", {"seed": seed}) / "student", kept)
                results[key] = row(result)
            print(key, results.data[key], flush=True)


def folder(run: Run, key: str) -> Path:
    """Where a finished student is kept; the next budget's takes its place in the run."""
    return run.root / "students" / key.replace(" ", "-")


def measure(results: Results, name: str, run: Run) -> None:
    """Time the students that are kept of a task against its teacher."""
    keys = [key for key in results.data if key.startswith(f"{name} ") and folder(run, key).exists()]
    lengths = run.latency_lengths
    models = {"teacher": run.load_teacher()[0], **{key: load_classifier(folder(run, key))[0] for key in keys}}
    passes = {key: model_call(model, lengths, pairs=run.task.pairs) for key, model in models.items()}
    for title, runtime in RUNTIMES.items():
        calls = {key: runtime.compile(own, 1) for key, own in passes.items()}
        rounds = [measure_latency_ms(calls, lengths) for _ in range(_ROUNDS)]
        for key in keys:
            results.data[key][f"{title}_ms"] = median(one[key] for one in rounds)
            results.data[key][f"{title}_speedup"] = median(one["teacher"] / one[key] for one in rounds)
    results.write()


def row(result: dict[str, Any]) -> dict[str, Any]:
    """What is kept of one student."""
    return {
        **{side: scores(result[side]) for side in ("teacher", "student")},
        "speedup": result["speedup"],
        "latency_ms": result["student"]["latency_ms"],
        "num_params": result["student"]["num_params"],
        "kept": result["kept"],
        "cells": [spell(one) for one in result["architecture"]],
        "finals": [{"cells": one["cells"], **scores(one)} for one in result.get("finals", ())],
        "compared": {side: scores(one) for side, one in result.get("compared", {}).items()},
        "general_seconds": result["general_seconds"],
        "seconds": result["seconds"],
    }


def scores(side: dict[str, Any]) -> dict[str, float]:
    """Of a model, on dev and on GLUE's dev files; of students how far from the teacher's answers, too."""
    return {key: value for key, value in side.items() if key.startswith(("dev_", "glue_dev", "test_"))}


def summary(found: dict[str, Any]) -> dict[str, Any]:
    """The mean over seeds by task and budget, scores in percent."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for key, one in found.items():
        groups.setdefault(key.rpartition(" ")[0], []).append(one)
    return {
        group: {
            "seeds": len(rows),
            **{
                f"{name} speedup": round(mean(one[f"{name}_speedup"] for one in rows), 1)
                for name in RUNTIMES
                if all(f"{name}_speedup" in one for one in rows)
            },
            **{
                f"{side} {metric}": round(100 * mean(one[side][metric] for one in rows), 2)
                for side in ("teacher", "student")
                for metric in rows[0][side]
                if not metric.startswith("dev_")
            },
        }
        for group, rows in groups.items()
    }


if __name__ == "__main__":
    main()
