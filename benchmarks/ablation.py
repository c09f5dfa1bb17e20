"""What each part of a student's training gives: every one taken away, or put in, alone.

    python benchmarks/ablation.py --glue GLUE_FOLDER [--tasks stsb mrpc cola] [--seeds 0] [--parts full "no pairs"]

The architecture is the one that the task's study chose under a budget of ten times the teacher's speed (its row in
benchmarks/results/students.json, of benchmarks/students.py). Its cells are trained from fresh weights with the settings
of the study, and anew for every part that touches them. Scores are on GLUE's dev files (glue_dev). What is finished, of
the same architecture, is reused. Raw results go to benchmarks/results/ablation.json; the last line is one JSON object.
About three minutes per part and seed on two cores.
"""

import dataclasses
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from common import RESULTS, Results, change, finish, glue_study, make_stages, options_parser, start

from nni_bertnas.artifacts import fingerprint
from nni_bertnas.config import Study, to_dict
from nni_bertnas.stages.baselines import train_cells
from nni_bertnas.stages.cells import load_ranked
from nni_bertnas.stages.run import Run
from nni_bertnas.stages.stage import stage_fingerprint
from nni_bertnas.stages.students import FIDELITY, StudentMaker
from nni_bertnas.student.candidates import Candidate
from nni_bertnas.tracking.tracker import Tracker
from search_space.cells import spell

_ROWS = ("general", "pairs", "corrupt", "probes")  # stages beside teacher and features that a student learns from
_OFF = {"bm25": 0, "near": 0, "beyond": 0, "random": 0}


def main() -> None:
    """Train the students, write the results, print the figures."""
    parser = options_parser(__doc__, tasks=("stsb", "mrpc", "cola"), seeds=(0,))
    parser.add_argument("--parts", nargs="+", help="names of parts; without it all")
    arguments = parser.parse_args()
    start(arguments.threads)
    results = Results(RESULTS / "ablation.json")
    for name in arguments.tasks:
        cells: dict[str, list[Candidate]] = {}
        study = glue_study(name, arguments.glue)
        chosen = architecture(name, study)
        layered = any(one.depth for one in chosen)
        every = parts(Run(study), layered)
        for part in [one for one in arguments.parts or every if one in every]:
            for seed in arguments.seeds:
                key = f"{name} / {part} / {seed}"
                if results.data.get(key, {}).get("cells") != [spell(one.architecture) for one in chosen]:
                    results[key] = row(changed(study, part, every[part]), chosen, seed, cells)
                print(key, results.data[key], flush=True)
    finish(summary(results.data))


def architecture(name: str, study: Study) -> list[Candidate]:
    """What the study chose under a budget of ten times the teacher's speed."""
    make_stages(Run(study), "teacher", "features", "general", "cell", "block", "pairs", "corrupt")
    chosen = Results(RESULTS / "students.json").data[f"{name} 10 {study.seed}"]["cells"]
    return [
        next(one for one in candidates if spell(one.architecture) == cells)
        for candidates, cells in zip(load_ranked(Run(study)), chosen, strict=True)
    ]


def parts(run: Run, layered: bool) -> dict[str, dict[str, Any]]:
    """The changes of the study by name; of cells only where there are any."""
    losses, other = run.study.distill.losses, "cross" if run.task.regression else "both"  # than auto, see teacher.kind
    found: dict[str, dict[str, Any]] = {
        "full": {},
        "no token weights": {"student": {"token_weights": False}},
        "matrix from the inputs": {"student": {"embedding_start": "input"}},
        "matrix from the outputs": {"student": {"embedding_start": "output"}},
        "with sentence vectors": {"distill": {"losses": {**losses, "sentence_vector": 0.1}}},
        "no label term": {"distill": {"losses": {**losses, "label": 0.0}}},
        "with averaging": {"supernet": {"averaging": 0.05}},
    }
    if run.task.pairs:
        found |= {
            "head pool": {"student": {"head": "pool"}},
            "head compare": {"student": {"head": "compare"}},
            "no pairs": {"pairs": _OFF},
            "with transfer": {"transfer": {"reviews": 10_000}},
            "no pre-distillation": {"general": {"rows": 0}},
            "no last epochs": {"supernet": {"last_epochs": 0}},
            "answers siamese": {"teacher": {"kind": "siamese"}},
            f"answers {other}": {"teacher": {"kind": other}},
        }
    else:
        found |= {
            "no corruptions": {"augment": {"corruptions": 0}},
            "no transfer": {"transfer": {"reviews": 0}},
            "with pre-distillation": {"general": {"rows": 20_000}},
        }
    if layered:
        found |= {
            "with general cells": {"general": {"rows": 20_000, "cells": 8_000}},
            "no hidden states": {"distill": {"losses": {**losses, "hidden_mse": 0.0}}},
            "with probes": {
                "block": {"losses": {"hidden_mse": 1.0, "probe": 0.1}},
                "distill": {"losses": {**losses, "probe": 0.1}},
            },
        }
    return found


def changed(study: Study, part: str, sections: Mapping[str, Any]) -> Run:
    """The study with a part changed, in a folder of its own where the features are others; the teacher is the same."""
    own, other = Run(study), Run(change(study, **sections))
    if stage_fingerprint(own, "features") == stage_fingerprint(other, "features"):
        return other
    run = Run(dataclasses.replace(other.study, name=f"{study.name}-{part.replace(' ', '_')}"))
    if not run.folder("teacher").exists():
        shutil.copytree(own.folder("teacher"), run.folder("teacher"))
    return run


def row(run: Run, chosen: Sequence[Candidate], seed: int, known: dict[str, list[Candidate]]) -> dict[str, Any]:
    """What is kept of one student; its cells are those that are known to be trained so, or become known."""
    before = time.perf_counter()
    make_stages(run, "teacher", "features", *_ROWS)
    made = time.perf_counter()
    sizes = run.train.hidden_size, run.study.student.hidden_size
    study = run.study
    touched = fingerprint(
        stage_fingerprint(run, "features"), to_dict(study.cell), to_dict(study.block), study.general.cells
    )
    if touched not in known:
        layered = any(one.depth for one in chosen)
        known[touched] = train_cells(run, chosen) if layered else [one.fresh(*sizes) for one in chosen]
    cells = known[touched]
    trained = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        result = StudentMaker(run, seed).train(cells, "ablation", Path(folder), Tracker())
    scores = {name: value for name, value in result["student"].items() if name.startswith(("dev_", "glue_dev"))}
    return {
        **scores,
        FIDELITY: result[FIDELITY],
        "cells": [spell(one.architecture) for one in chosen],
        "rows_seconds": made - before,
        "cells_seconds": trained - made,
        "general_seconds": result["general_seconds"],
        "seconds": result["seconds"],
        "latency_ms": result["student"]["latency_ms"],
        "speedup": result["speedup"],
    }


def summary(found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The mean over seeds by task and part, in percent, and its difference from the whole."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for key, one in found.items():
        task, part, _ = key.split(" / ")
        groups.setdefault((task, part), []).append(one)
    means = {
        group: {name: 100 * mean(one[name] for one in rows) for name in rows[0] if name.startswith("glue_dev")}
        for group, rows in groups.items()
    }
    return {
        f"{task}, {part}": {
            "seeds": len(groups[task, part]),
            **{name: round(value, 2) for name, value in own.items()},
            "against_full": {
                name: round(value - means[task, "full"][name], 2) for name, value in own.items()
            } if (task, "full") in means else None,
        }
        for (task, part), own in means.items()
    }  # fmt: skip


if __name__ == "__main__":
    main()
