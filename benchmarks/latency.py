"""Predicted against measured latency: random students of a study's space, at batch 1 and 32.

    python benchmarks/latency.py STUDY [--students 30] [--batch 1 32] [--seed 0]

The study's features must be made (bertnas features STUDY); nothing else should run beside it. Depths and operations are
drawn at random, block by block, no layer among them. What every part takes is looked up in the machine's table, and
measured where it is not there yet; then the students are measured as wholes, in turns with the teacher, at the lengths
of the study's rows and in its runtime, and with the student of the deepest cells, by which predictions are brought to
the machine's speed of that minute. Raw results go to benchmarks/results/latency.json; the last line is one JSON object:
the median error, the share within 10 %, and Spearman's and Kendall's rank correlation.
"""

import argparse
import random
from pathlib import Path
from statistics import median
from typing import Any

from common import RESULTS, Results, finish, start
from scipy.stats import kendalltau, spearmanr

from nni_bertnas.stages.choice import Prices
from nni_bertnas.stages.run import Run
from nni_bertnas.stages.students import StudentMaker
from nni_bertnas.student.candidates import Candidate, no_layer
from nni_bertnas.student.cost import measure_latency_ms, model_call
from nni_bertnas.student.runtimes import RUNTIMES
from nni_bertnas.student.selection import combine
from nni_bertnas.study_files import load_study
from search_space.cells import spell


def main() -> None:
    """Draw, predict, measure, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--students", type=int, default=30)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    run = Run(load_study(arguments.study))
    threads, runtime = run.study.supernet.latency_threads, RUNTIMES[run.study.supernet.latency_runtime]
    start(threads)
    results = Results(RESULTS / "latency.json")
    maker, generator = StudentMaker(run, run.study.seed), random.Random(arguments.seed)
    chosen = [[draw(run, generator) for _ in range(run.num_blocks)] for _ in range(arguments.students)]
    blocks = [list(one) for one in zip(*chosen, strict=True)]
    figures = {}
    for batch in arguments.batch:
        table = run.latency_table(batch)
        prices = Prices.measure(maker, blocks, table)
        lengths = run.latency_lengths if batch == 1 else run.latency_lengths[::3]
        models = {str(number): maker.new_student(one).fused() for number, one in enumerate(chosen)}
        deepest = tuple(max(range(len(block)), key=lambda n: block[n].depth) for block in blocks)
        whole = maker.new_student([block[n] for block, n in zip(blocks, deepest, strict=True)]).fused()
        models |= {"teacher": maker.teacher, "deepest": whole}
        deepest_table_ms = combine(prices.blocks, prices.base, deepest).latency_ms
        calls = {
            name: runtime.compile(model_call(model, lengths, pairs=run.train.has_pairs, batch=batch), threads)
            for name, model in models.items()
        }
        measured = measure_latency_ms(calls, lengths, threads=threads, run=5)  # all in turns, as the machine drifts
        rows: list[dict[str, Any]] = []
        for number, cells in enumerate(chosen):
            bare = not any(one.depth for one in cells)
            choice = tuple([number] * run.num_blocks)
            known = prices.bag if bare and prices.bag is not None else combine(prices.blocks, prices.base, choice)
            rows.append(
                {
                    "cells": [spell(one.architecture) for one in cells],
                    "predicted_ms": known.latency_ms,
                    "measured_ms": measured[str(number)],
                    "deepest_ms": measured["deepest"],
                    "deepest_table_ms": deepest_table_ms,
                    "teacher_ms": measured["teacher"],
                    "teacher_table_ms": prices.teacher_ms,
                }
            )
            print(rows[-1], flush=True)
        results[f"{run.study.name}, {runtime.title}, batch {batch}"] = {"machine": table.machine, "rows": rows}
        # The table's milliseconds are of another minute: one student tells how fast the machine is now.
        pairs = [
            (one["predicted_ms"] * one["deepest_ms"] / one["deepest_table_ms"], one["measured_ms"]) for one in rows
        ]
        errors = [abs(predicted / real - 1) for predicted, real in pairs]
        predicted, real = zip(*pairs, strict=True)
        figures[f"batch {batch}"] = {
            "students": len(rows),
            "median_error": round(median(errors), 4),
            "within_10_percent": round(sum(one <= 0.1 for one in errors) / len(errors), 3),
            "spearman": round(float(spearmanr(predicted, real).statistic), 4),
            "kendall": round(float(kendalltau(predicted, real).statistic), 4),
        }
    finish(figures)


def draw(run: Run, generator: random.Random) -> Candidate:
    """A random cell: no layer, or any of the study's depths."""
    sizes = run.train.hidden_size, run.study.student.hidden_size
    depth = generator.choice([0, *run.spaces])
    if not depth:
        return no_layer().fresh(*sizes)
    names = run.spaces[depth].operation_names
    architecture = {f"layer_{number}": generator.choice(names) for number in range(depth)}
    return Candidate(space=run.study.cell.space, depth=depth, architecture=architecture).fresh(*sizes)


if __name__ == "__main__":
    main()
