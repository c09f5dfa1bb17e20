"""No layer at all: word vectors, token weights and a head, with the rows and the training of our students."""

from dataclasses import replace
from pathlib import Path

from common import glue_study

from nni_bertnas.stages.run import Run
from nni_bertnas.stages.students import StudentMaker
from nni_bertnas.student.candidates import no_layer
from nni_bertnas.tracking.tracker import Tracker
from peers import teacher
from peers.worker import Job

load = teacher.load


def fit(job: Job, folder: Path) -> None:
    """See `peers`."""
    run = Run(glue_study(job.said["task"], job.said["glue"]))
    maker = StudentMaker(run, job.seed)
    maker.shape = replace(run.shape, head=job.options["head"])
    cells = [no_layer().fresh(run.train.hidden_size, run.study.student.hidden_size) for _ in range(run.num_blocks)]
    made = folder.with_name(f"{folder.name}-made")
    maker.train(cells, "bag", made, Tracker())
    for path in (made / "student").iterdir():
        path.rename(folder / path.name)
