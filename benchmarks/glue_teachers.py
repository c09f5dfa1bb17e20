"""What the MiniLM teacher reaches on the GLUE tasks at hand, as `bertnas teacher` makes it from the studies in glue/.

    python benchmarks/glue_teachers.py --glue GLUE_FOLDER [--tasks rte mrpc] [--seeds 0 1 2] [--threads 2]

Scores are on GLUE's dev files (glue_dev), which no training looks at: the best epoch is chosen on rows held out of
train. A finished teacher is reused, so it can be run in pieces. Raw results go to
benchmarks/results/glue_teachers.json; the last line is one JSON object. 3 to 6 minutes per teacher on two cores.
"""

import argparse
import dataclasses
import json
import os
from pathlib import Path
from statistics import mean

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

from nni_bertnas import quiet_libraries
from nni_bertnas.config import load_study, study_to_dict
from nni_bertnas.training.teacher import ensure_teacher

HERE = Path(__file__).parent
TARGET = HERE / "results" / "glue_teachers.json"
STUDIES = HERE.parent / "experiment_configs" / "studies" / "glue"


def main() -> None:
    """Make the teachers, write the results, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--glue", required=True, help="folder that holds RTE/, MRPC/ ...")
    parser.add_argument("--tasks", nargs="+", default=["rte", "mrpc", "cola", "stsb"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    quiet_libraries()
    torch.set_num_threads(arguments.threads)
    results = json.loads(TARGET.read_text()) if TARGET.exists() else {}
    for seed in arguments.seeds:
        for name in arguments.tasks:
            study = load_study(STUDIES / f"{name}.yml")
            task = dataclasses.replace(study.task, data_dir=arguments.glue)
            study = dataclasses.replace(
                study, name=f"{study.name}-{seed}" if seed else study.name, seed=seed, task=task
            )
            result = ensure_teacher(study)
            results.setdefault(name, {})[str(seed)] = {**result, "teacher": study_to_dict(study)["teacher"]}
            TARGET.write_text(json.dumps(results, indent=1))
            print(name, seed, {key: result[key] for key in result if key.startswith(("dev", "glue_dev"))}, flush=True)
    figures = {
        name: {metric: round(mean(one["glue_dev"][metric] * 100 for one in found.values()), 2) for metric in metrics}
        for name, found in results.items()
        for metrics in [next(iter(found.values()))["glue_dev"]]
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
