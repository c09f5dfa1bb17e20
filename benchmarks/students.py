"""What the students of the GLUE studies reach at two speeds, as `bertnas run` makes them from the studies in glue/.

    python benchmarks/students.py --glue GLUE_FOLDER [--tasks stsb mrpc] [--seeds 0 1 2] [--speedups 10 20]

One teacher and one search per task (of the study's own seed); the students are trained with every seed and budget.
Scores are on GLUE's dev files (glue_dev), which neither training nor choice looks at. What is finished is reused, so it
can be run in pieces; nothing else should run beside it, as latencies are measured: batch 1, one thread, 64 word pieces
for single texts and the task's own lengths for pairs. Raw results go to benchmarks/results/students.json; the last line
is one JSON object. About 15 minutes per task and 3 per student on two cores.
"""

import time
from statistics import mean
from typing import Any

from common import RESULTS, Results, change, finish, glue_study, make_stages, options_parser, start

from nni_bertnas.config import BudgetSettings
from nni_bertnas.data.models import load_classifier
from nni_bertnas.stages import STAGES
from nni_bertnas.stages.run import Run
from nni_bertnas.stages.stage import ensure
from nni_bertnas.student.cost import measure_latency_ms, model_call
from search_space.cells import spell

_LENGTHS = [64] * 60  # of single texts
_BEFORE = [name for name in STAGES if name not in ("supernet", "frontier", "baselines")]


def main() -> None:
    """Make the students, write the results, print the figures."""
    parser = options_parser(__doc__, tasks=("stsb", "mrpc", "sst2", "cola"), seeds=(0, 1, 2))
    parser.add_argument("--speedups", nargs="+", type=float, default=[10.0, 20.0])
    arguments = parser.parse_args()
    start(arguments.threads)
    results = Results(RESULTS / "students.json")
    for name in arguments.tasks:
        study = glue_study(name, arguments.glue)
        before = time.perf_counter()
        make_stages(Run(study), *_BEFORE)
        print(name, "search and what comes before", f"{time.perf_counter() - before:.0f} s", flush=True)
        for speedup in arguments.speedups:
            run = Run(change(study, supernet={"budget": BudgetSettings(min_speedup=speedup)}))
            for seed in arguments.seeds:
                key = f"{name} {speedup:g} {seed}"
                if key not in results:
                    results[key] = row(run, ensure(run, "supernet", {"seed": seed}))
                print(key, results.data[key], flush=True)
    finish(summary(results.data))


def row(run: Run, result: dict[str, Any]) -> dict[str, Any]:
    """What is kept of one student."""
    speedup = result["speedup"]
    if not run.task.pairs:
        models = {"teacher": run.load_teacher()[0]}
        models["student"] = load_classifier(run.folder("supernet", {"seed": result["seed"]}) / "student")[0]
        calls = {side: model_call(model, _LENGTHS) for side, model in models.items()}
        latency_ms = measure_latency_ms(calls, _LENGTHS)
        speedup = latency_ms["teacher"] / latency_ms["student"]
    scores = {side: {key: value for key, value in result[side].items() if key.startswith(("dev_", "glue_dev"))}
              for side in ("teacher", "student")}  # fmt: skip
    return {
        **scores,
        "speedup": speedup,
        "latency_ms": result["student"]["latency_ms"],
        "num_params": result["student"]["num_params"],
        "kept": result["kept"],
        "cells": [spell(one) for one in result["architecture"]],
        "compared": {name: one[f"dev_{run.task.metric}"] for name, one in result.get("compared", {}).items()},
        "general_seconds": result["general_seconds"],
        "seconds": result["seconds"],
    }


def summary(found: dict[str, Any]) -> dict[str, Any]:
    """The mean over seeds by task and budget, scores in percent."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for key, one in found.items():
        groups.setdefault(key.rpartition(" ")[0], []).append(one)
    return {
        group: {
            "seeds": len(rows),
            "speedup": round(mean(one["speedup"] for one in rows), 1),
            **{
                f"{side} {metric}": round(100 * mean(one[side][metric] for one in rows), 2)
                for side in ("teacher", "student")
                for metric in rows[0][side]
                if metric.startswith("glue_dev")
            },
        }
        for group, rows in groups.items()
    }


if __name__ == "__main__":
    main()
