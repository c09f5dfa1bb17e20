"""A searched student of a GLUE study as it is shipped, under a budget or of a ready profile; or its baseline."""

import shutil
from pathlib import Path

from common import make_stages
from students import BEFORE, shipped, under
from students import folder as kept

from nni_bertnas.stages.run import Run
from nni_bertnas.stages.stage import ensure
from peers import teacher
from peers.worker import Job

load = teacher.load


def fit(job: Job, folder: Path) -> None:
    """See `peers`; a student of a budget that benchmarks/students.py made is taken as it is."""
    task, profile, speedup = job.said["task"], job.options.get("profile"), job.options.get("speedup")
    study = shipped(task, job.said["glue"], profile)
    run = Run(under(study, speedup) if speedup else study)
    student, baseline = kept(run, f"{task} {speedup or 0:g} {job.seed}"), job.options.get("baseline")
    if baseline or not student.exists():
        make_stages(run, *BEFORE)
        made = [("supernet", {"seed": job.seed})]
        if baseline:
            made.append(("baselines", {"seed": job.seed, "student": baseline}))
        for stage, unit in made:
            ensure(run, stage, unit)
            student = run.folder(stage, unit) / "student"
    shutil.copytree(student, folder, dirs_exist_ok=True)
