"""What unlabelled transfer text does for the demo's student: test accuracy with 0 and 12,000 sentences, three seeds.

    python benchmarks/transfer_text.py

Every other setting is the demo's. The first column is the demo's own run directory, so that a finished `make run` is
reused; what is finished is not done again. Raw results go to benchmarks/results/transfer_text.json; the last line
is one JSON object. About 11 minutes on two cores after `make run`.
"""

import os
import platform
import shutil
from statistics import mean
from typing import Any

from common import RESULTS, STUDIES, Results, change, finish, make_stages, start

from nni_bertnas.stages.run import Run
from nni_bertnas.stages.stage import ensure
from nni_bertnas.study_files import load_study

SEEDS = (0, 1, 2)


def students(run: Run) -> list[dict[str, Any]]:
    """All of a study in this process, for every seed of the last phase."""
    make_stages(run, "teacher", "features", "cell", "block")
    return [ensure(run, "supernet", {"seed": seed}) for seed in SEEDS]


def main() -> None:
    """Run both studies, write the results, print the figures."""
    start(os.cpu_count() or 1)
    study = load_study(STUDIES / "demo.yml")
    demo, without = Run(study), Run(change(study, name="demo-without-transfer", transfer={"reviews": 0}))
    ensure(demo, "teacher")
    if without.read("teacher") is None:
        shutil.copytree(demo.folder("teacher"), without.folder("teacher"))
    found = {run.study.transfer.reviews: students(run) for run in (demo, without)}
    figures: dict[str, object] = {"machine": platform.machine(), "cores": os.cpu_count(), "seeds": SEEDS}
    for rows, results in found.items():
        scores = [one["student"]["test_accuracy"] * 100 for one in results]
        figures[f"transfer_{rows}"] = {
            "test_accuracy": [round(score, 2) for score in scores],
            "mean": round(mean(scores), 2),
            "speedup": [round(one["speedup"], 2) for one in results],
            "architecture": [list(part.values()) for part in results[0]["architecture"]],
        }
    figures["teacher_test_accuracy"] = round(found[0][0]["teacher"]["test_accuracy"] * 100, 2)
    kept = Results(RESULTS / "transfer_text.json")
    kept.data = {"figures": figures, "results": found}
    kept.write()
    finish(figures)


if __name__ == "__main__":
    main()
