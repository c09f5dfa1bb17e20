"""What augmentation does for a student: GLUE dev score with 0, 1, 5 and 20 copies per row, at equal training steps.

    python benchmarks/augmentation.py --glue GLUE_FOLDER [--tasks mrpc stsb sst2] [--copies 0 1 5 20] [--seeds 0 1]
        [--epoch-rows 4000] [--threads 2]

The teacher, the feature store, the search and the architecture of a task are the same in all columns; only what the
student is trained on differs. The teachers have seen all rows, the students of STS-B 2,500 and of SST-2 5,000 of them.
The masked language model is fitted to the task's text (--fit-mlm). A student is trained for six epochs of --epoch-rows
rows. What is finished is not done again, so it can be run in pieces. Raw results go to
benchmarks/results/augmentation.json; the last line is one JSON object. About an hour per task on one core.
"""

import argparse
import dataclasses
import json
import os
from pathlib import Path
from statistics import mean
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

from nni_bertnas import quiet_libraries
from nni_bertnas.artifacts import RunDirectory
from nni_bertnas.augment.replace import ensure_augmented
from nni_bertnas.config import Study, load_study
from nni_bertnas.data.tasks import task_spec
from nni_bertnas.stages import block, cell, supernet
from nni_bertnas.store.reader import ensure_features
from nni_bertnas.training.masked_lm import ensure_masked_lm
from nni_bertnas.training.teacher import ensure_teacher

HERE = Path(__file__).parent
TARGET = HERE / "results" / "augmentation.json"
STUDIES = HERE.parent / "experiment_configs" / "studies" / "glue"
MOST_COPIES = 20
MAX_TRAIN_ROWS = {"stsb": 2500, "sst2": 5000}


def make_study(name: str, glue: str, epoch_rows: int) -> Study:
    """One task's study; where train is cut, the teacher is the one of the uncut study, as it is."""
    study = load_study(STUDIES / f"{name}.yml")
    study = dataclasses.replace(study, task=dataclasses.replace(study.task, data_dir=glue))
    rows = MAX_TRAIN_ROWS.get(name)
    if rows is not None:
        ensure_teacher(study)
        teacher = dataclasses.replace(study.teacher, model=str(RunDirectory(study).teacher), fine_tune="never")
        task = dataclasses.replace(study.task, max_train_rows=rows)
        study = dataclasses.replace(study, name=f"{study.name}-{rows}", task=task, teacher=teacher)
    return dataclasses.replace(
        study,
        augment=dataclasses.replace(study.augment, copies=MOST_COPIES, fit_epochs=3),
        supernet=dataclasses.replace(study.supernet, epochs=6, epoch_rows=epoch_rows),
    )


def prepare(study: Study) -> dict[str, Any]:
    """Everything before the student's training; what the masked language model and the new rows are like."""
    teacher = ensure_teacher(study)
    num_blocks = len(ensure_features(study)["edges"]) - 1
    for phase in (cell, block):
        for unit in phase.units(study, num_blocks):
            phase.run(study, **unit)
    return {"teacher": teacher, "masked_lm": ensure_masked_lm(study), "augment": ensure_augmented(study)}


def main() -> None:
    """Train the students, write the results, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--glue", required=True, help="folder that holds MRPC/, STS-B/, SST-2/")
    parser.add_argument("--tasks", nargs="+", default=["mrpc", "stsb", "sst2"])
    parser.add_argument("--copies", nargs="+", type=int, default=[0, 1, 5, 20])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--epoch-rows", type=int, default=4000, help="rows of one of the student's six epochs")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    quiet_libraries()
    torch.set_num_threads(arguments.threads)
    results = json.loads(TARGET.read_text()) if TARGET.exists() else {}
    figures: dict[str, Any] = {}
    for name in arguments.tasks:
        study = make_study(name, str(Path(arguments.glue).resolve()), arguments.epoch_rows)
        found = results.setdefault(name, {"students": {}})
        found |= prepare(study)
        TARGET.write_text(json.dumps(results, indent=1))
        by_copies = found["students"].setdefault(str(arguments.epoch_rows), {})
        for seed in arguments.seeds:
            for copies in arguments.copies:
                students = by_copies.setdefault(str(copies), {})
                if str(seed) not in students:
                    one = dataclasses.replace(study, augment=dataclasses.replace(study.augment, copies=copies))
                    students[str(seed)] = supernet.run(one, seed)
                    TARGET.write_text(json.dumps(results, indent=1))
                score = students[str(seed)]["student"]
                print(name, seed, copies, {key: score[key] for key in score if key.startswith("glue_dev")}, flush=True)
        figures[name] = {
            metric: {
                "teacher": round(found["teacher"]["glue_dev"][metric] * 100, 2),
                **{copies: _summary(students, metric) for copies, students in by_copies.items()},
            }
            for metric in task_spec(study.task).metrics
        } | {
            "tries_per_second": round(found["augment"]["rows_per_second"], 1),
            "unchanged_share": round(found["augment"]["unchanged_share"], 4),
            "duplicate_share": round(found["augment"]["duplicate_share"], 4),
        }
    print(json.dumps(figures))


def _summary(students: dict[str, Any], metric: str) -> dict[str, Any]:
    scores = [one["student"][f"glue_dev_{metric}"] * 100 for one in students.values()]
    return {"mean": round(mean(scores), 2), "scores": [round(score, 2) for score in scores]}


if __name__ == "__main__":
    main()
