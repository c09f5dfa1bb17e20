"""Which score of a student's blocks ranks students as their training does: Kendall's tau over students spread wide.

    python benchmarks/rank_correlation.py --glue GLUE_FOLDER [--tasks sst2 stsb mrpc] [--students 24] [--seeds 0]

In every block the same cells, one per kind of operation, some of two and three layers, and none, are trained as the
block phase does and scored: by their local error (relative L1), and by what the teacher's outputs lose with the cell in
place of its block. Students of random cells, one per block, are then trained end to end alike (three epochs, the task's
rows alone, of SST-2 10,000), and their scores on dev and GLUE's dev are compared with the summed scores of their
blocks, their parameters, FLOPs and W-PCA (arXiv 2504.15983: parameters times the principal components that hold 99 % of
the variance of the hidden states of the untrained student). Intervals are of 1,000 bootstrap samples of the students.
Students that are finished are
not trained again, the cells are. Raw results go to benchmarks/results/rank_correlation.json; the last line is one JSON
object. About fifteen minutes per task on two cores.
"""

import random
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from common import RESULTS, Results, change, finish, glue_study, make_stages, options_parser, start
from scipy.stats import kendalltau

from nni_bertnas.data.batches import make_loader, model_inputs
from nni_bertnas.data.tokens import tokenize
from nni_bertnas.stages.cells import with_replaced
from nni_bertnas.stages.run import Run
from nni_bertnas.stages.students import FIDELITY, StudentMaker
from nni_bertnas.student.candidates import Candidate, no_layer
from nni_bertnas.student.cost import count_flops, count_params
from nni_bertnas.tracking.tracker import Tracker
from nni_bertnas.training.metrics import evaluate_classifier
from search_space.cells import spell

_CELLS = (
    (), ("convolution_3",), ("convolution_7",), ("dilated_convolution_5",), ("max_pool_3",), ("average_pool_3",),
    ("attention_4",), ("convolution_3", "attention_4"), ("attention_8", "convolution_1"),
    ("average_pool_3", "max_pool_3"), ("convolution_3", "convolution_5", "convolution_3"),
    ("attention_4", "attention_4", "attention_4"),
)  # fmt: skip
_ROWS = {"sst2": 10_000}
_PREDICTORS = ("local", "replaced", "num_params", "num_flops", "w_pca")
_SAMPLES = 1000


def main() -> None:
    """Train, write the results, print the figures."""
    parser = options_parser(__doc__, tasks=("sst2", "stsb", "mrpc"), seeds=(0,))
    parser.add_argument("--students", type=int, default=24)
    arguments = parser.parse_args()
    start(arguments.threads)
    results = Results(RESULTS / "rank_correlation.json")
    for name in arguments.tasks:
        study = change(
            glue_study(name, arguments.glue, _ROWS.get(name)),
            general={"rows": 0},
            pairs={"bm25": 0, "near": 0, "beyond": 0, "random": 0},
            transfer={"reviews": 0},
            augment={"corruptions": 0},
            supernet={"epochs": 3, "last_epochs": 0},
        )
        run = Run(study)
        make_stages(run, "teacher", "features")
        before = time.perf_counter()
        blocks = [candidates(run, block) for block in range(run.num_blocks)]
        results[f"{name} / blocks"] = {
            "seconds": time.perf_counter() - before,
            "cells": [
                [{"cell": spell(one.architecture), "local": one.score, "replaced": one.replaced} for one in block]
                for block in blocks
            ],
        }
        generator = random.Random(study.seed)
        drawn: list[tuple[int, ...]] = []
        while len(drawn) < arguments.students:
            one = tuple(generator.randrange(len(_CELLS)) for _ in blocks)
            if any(one) and one not in drawn:
                drawn.append(one)
        for choice in drawn:
            for seed in arguments.seeds:
                key = f"{name} / {' '.join(map(str, choice))} / {seed}"
                if key not in results:
                    results[key] = row(run, [block[n] for block, n in zip(blocks, choice, strict=True)], seed)
                print(key, results.data[key], flush=True)
    finish(summary(results.data))


def candidates(run: Run, block: int) -> list[Candidate]:
    """The cells of one block, trained and scored, in the order of _CELLS."""
    sizes = run.train.hidden_size, run.study.student.hidden_size
    shapes = [
        Candidate(
            space="layers", depth=len(names), architecture={f"layer_{n}": name for n, name in enumerate(names)}
        ).fresh(*sizes)
        if names
        else no_layer().fresh(*sizes)
        for names in _CELLS
    ]
    trainer = run.trainer(block, run.study.block, Tracker(), seed=run.seed(block))
    return with_replaced(run, block, trainer.train_on(shapes, sizes[1], fresh=True))


def row(run: Run, chosen: Sequence[Candidate], seed: int) -> dict[str, Any]:
    """What one student is predicted, and found, to be worth."""
    maker = StudentMaker(run, seed)
    fresh = maker.new_student(chosen)
    components = w_pca(fresh, next(iter(maker.dev_loader)))
    before = time.perf_counter()
    student, trained = maker.distil(chosen, run.study.supernet, Tracker(), general=False)
    seconds = time.perf_counter() - before
    rows = tokenize(maker.tokenizer, run.data.splits["glue_dev"], run.study.task.max_length)
    scores = {
        "dev": evaluate_classifier(student, maker.dev_loader, run.task)[run.task.metric],
        "glue_dev": evaluate_classifier(student, make_loader(rows, 128, shuffle=False), run.task)[run.task.metric],
    }
    num_params = count_params(student)
    return {
        "cells": [spell(one.architecture) for one in chosen],
        **scores,
        FIDELITY: trained[FIDELITY],
        "local": sum(one.score for one in chosen),
        "replaced": sum(float(one.replaced or 0.0) for one in chosen),
        "num_params": num_params,
        "num_flops": count_flops(maker.call(student), maker.middle),
        "w_pca": num_params * components,
        "seconds": seconds,
    }


@torch.inference_mode()
def w_pca(student: Any, batch: Any) -> int:
    """Principal components that hold 99 % of the variance at every block's exit, summed over blocks."""
    states = student(**model_inputs(student, batch), output_hidden_states=True).hidden_states
    total = 0
    for hidden in states:
        flat = hidden.flatten(0, -2).double()
        variance = torch.linalg.eigvalsh(torch.cov(flat.T)).flip(0).clamp(min=0)
        total += int((variance.cumsum(0) < 0.99 * variance.sum()).sum()) + 1
    return total


def summary(found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Kendall's tau of every predictor with every measure, by task, with its interval."""
    figures: dict[str, Any] = {}
    for task in dict.fromkeys(key.partition(" / ")[0] for key in found):
        groups: dict[str, list[Mapping[str, Any]]] = {}
        for key, one in found.items():
            if key.startswith(f"{task} / ") and not key.endswith("blocks"):
                groups.setdefault(key.split(" / ")[1], []).append(one)
        rows = [
            {name: float(np.mean([one[name] for one in group])) for name in (*_PREDICTORS, "dev", "glue_dev", FIDELITY)}
            for group in groups.values()
        ]
        for measure, sign in (("dev", 1), ("glue_dev", 1), (FIDELITY, -1)):
            good = np.array([sign * one[measure] for one in rows])
            for name in _PREDICTORS:
                better = -1 if name in ("local", "replaced") else 1
                predicted = np.array([better * one[name] for one in rows])
                figures[f"{task}, {name} with {measure}"] = tau(predicted, good)
        if rows:
            glue_dev = np.array([one["glue_dev"] for one in rows])
            for name, sign in (("dev", 1), (FIDELITY, -1)):
                figures[f"{task}, {name} with glue_dev"] = tau(np.array([sign * one[name] for one in rows]), glue_dev)
    return figures


def tau(predicted: np.ndarray, good: np.ndarray) -> dict[str, Any]:
    """Kendall's tau-b and the middle 95 % of its bootstrap samples."""
    generator = np.random.default_rng(0)
    samples = []
    for _ in range(_SAMPLES):
        rows = generator.integers(0, len(good), len(good))
        samples.append(kendalltau(predicted[rows], good[rows]).statistic)
    low, high = np.nanquantile(samples, [0.025, 0.975])
    return {
        "tau": round(float(kendalltau(predicted, good).statistic), 3),
        "interval": [round(float(low), 3), round(float(high), 3)],
        "students": len(good),
    }


if __name__ == "__main__":
    main()
