"""What augmentation does for a student: GLUE dev score with 0, 1, 5 and 20 copies per row, at equal training steps.

    python benchmarks/augmentation.py --glue GLUE_FOLDER [--tasks mrpc stsb sst2] [--copies 0 1 5 20] [--seeds 0 1]
        [--epoch-rows 4000] [--threads 2]

The teacher, the feature store, the search and the architecture of a task are the same in all columns; only what the
student is trained on differs. The teachers have seen all rows, the students of STS-B 2,500 and of SST-2 5,000 of them.
The masked language model is fitted to the task's text. A student is trained for six epochs of --epoch-rows
rows. What is finished is not done again, so it can be run in pieces. Raw results go to
benchmarks/results/augmentation.json; the last line is one JSON object. About an hour per task on one core.
"""

from pathlib import Path
from statistics import mean
from typing import Any

from common import RESULTS, Results, change, finish, glue_study, make_stages, options_parser, start

from nni_bertnas.stages.run import Run
from nni_bertnas.stages.stage import ensure

MOST_COPIES = 20
MAX_TRAIN_ROWS = {"stsb": 2500, "sst2": 5000}


def prepare(run: Run) -> dict[str, Any]:
    """Everything before the student's training; what the masked language model and the new rows are like."""
    make_stages(run, "cell", "block")
    return {name: ensure(run, name) for name in ("teacher", "masked_lm", "augment")}


def main() -> None:
    """Train the students, write the results, print the figures."""
    parser = options_parser(__doc__, tasks=("mrpc", "stsb", "sst2"), seeds=(0, 1))
    parser.add_argument("--copies", nargs="+", type=int, default=[0, 1, 5, 20])
    parser.add_argument("--epoch-rows", type=int, default=4000, help="rows of one of the student's six epochs")
    arguments = parser.parse_args()
    start(arguments.threads)
    results = Results(RESULTS / "augmentation.json")
    figures: dict[str, Any] = {}
    for name in arguments.tasks:
        study = glue_study(name, str(Path(arguments.glue).resolve()), MAX_TRAIN_ROWS.get(name))
        supernet = {"epochs": 6, "epoch_rows": arguments.epoch_rows}
        study = change(study, augment={"copies": MOST_COPIES, "fit_epochs": 3}, supernet=supernet)
        run = Run(study)
        results[name] = {"students": {}, **results.data.get(name, {}), **prepare(run)}
        found = results.data[name]
        by_copies = found["students"].setdefault(str(arguments.epoch_rows), {})
        for seed in arguments.seeds:
            for copies in arguments.copies:
                students = by_copies.setdefault(str(copies), {})
                if str(seed) not in students:
                    one = Run(change(study, augment={"copies": copies}))
                    students[str(seed)] = ensure(one, "supernet", {"seed": seed})
                    results.write()
                score = students[str(seed)]["student"]
                print(name, seed, copies, {key: score[key] for key in score if key.startswith("glue_dev")}, flush=True)
        figures[name] = {
            metric: {
                "teacher": round(found["teacher"]["glue_dev"][metric] * 100, 2),
                **{copies: _summary(students, metric) for copies, students in by_copies.items()},
            }
            for metric in run.task.metrics
        } | {
            "tries_per_second": round(found["augment"]["rows_per_second"], 1),
            "unchanged_share": round(found["augment"]["unchanged_share"], 4),
            "duplicate_share": round(found["augment"]["duplicate_share"], 4),
        }
    finish(figures)


def _summary(students: dict[str, Any], metric: str) -> dict[str, Any]:
    scores = [one["student"][f"glue_dev_{metric}"] * 100 for one in students.values()]
    return {"mean": round(mean(scores), 2), "scores": [round(score, 2) for score in scores]}


if __name__ == "__main__":
    main()
