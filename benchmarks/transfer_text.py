"""What unlabelled transfer text does for the demo's student: test accuracy with 0 and 12,000 sentences, three seeds.

    python benchmarks/transfer_text.py

Every other setting is the demo's. The first column is the demo's own run directory, so that a finished `make run` is
reused; what is finished is not done again. Raw results go to benchmarks/results/transfer_text.json; the last line
is one JSON object. About 11 minutes on two cores after `make run`.
"""

import dataclasses
import json
import os
import platform
import shutil
from pathlib import Path
from statistics import mean

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from nni_bertnas import quiet_libraries
from nni_bertnas.artifacts import RunDirectory
from nni_bertnas.config import Study, load_study
from nni_bertnas.stages import block, cell, supernet
from nni_bertnas.store.reader import ensure_features
from nni_bertnas.training.teacher import ensure_teacher, find_teacher

HERE = Path(__file__).parent
SEEDS = (0, 1, 2)


def run(study: Study) -> list[dict]:
    """All of a study in this process, for every seed of the last phase."""
    ensure_teacher(study)
    num_blocks = len(ensure_features(study)["edges"]) - 1
    for phase in (cell, block):
        for unit in phase.units(study, num_blocks):
            phase.run(study, **unit)
    return [supernet.run(study, seed) for seed in SEEDS]


def main() -> None:
    """Run both studies, write the results, print the figures."""
    quiet_libraries()
    demo = load_study(HERE.parent / "experiment_configs" / "studies" / "demo.yml")
    without = dataclasses.replace(
        demo, name="demo-without-transfer", task=dataclasses.replace(demo.task, transfer_rows=0)
    )
    ensure_teacher(demo)
    if find_teacher(without) is None:
        shutil.copytree(RunDirectory(demo).teacher, RunDirectory(without).teacher)
    results = {study.task.transfer_rows: run(study) for study in (demo, without)}
    figures: dict[str, object] = {"machine": platform.machine(), "cores": os.cpu_count(), "seeds": SEEDS}
    for rows, found in results.items():
        scores = [one["student"]["test_accuracy"] * 100 for one in found]
        figures[f"transfer_{rows}"] = {
            "test_accuracy": [round(score, 2) for score in scores],
            "mean": round(mean(scores), 2),
            "speedup": [round(one["speedup"], 2) for one in found],
            "architecture": [list(part.values()) for part in found[0]["architecture"]],
        }
    figures["teacher_test_accuracy"] = round(results[0][0]["teacher"]["test_accuracy"] * 100, 2)
    target = HERE / "results" / "transfer_text.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps({"figures": figures, "results": results}, indent=1))
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
