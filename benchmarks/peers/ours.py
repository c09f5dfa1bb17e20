"""A searched student of one of the ready profiles, as `bertnas run` makes it."""

import shutil
from pathlib import Path

from common import STUDIES, change, make_stages

from nni_bertnas.stages import STAGES
from nni_bertnas.stages.run import Run
from nni_bertnas.stages.stage import ensure
from nni_bertnas.study_files import parse_study, read_yaml
from peers import teacher
from peers.worker import Job

load = teacher.load
BEFORE = [name for name in STAGES if name not in ("supernet", "frontier", "baselines")]


def fit(job: Job, folder: Path) -> None:
    """See `peers`."""
    raw = read_yaml(STUDIES / "glue" / f"{job.said['task']}.yml")
    study = parse_study({**raw, "profile": job.options["profile"]})
    run = Run(change(study, task={"data_dir": job.said["glue"]}))
    make_stages(run, *BEFORE)
    ensure(run, "supernet", {"seed": job.seed})
    shutil.copytree(run.folder("supernet", {"seed": job.seed}) / "student", folder, dirs_exist_ok=True)
