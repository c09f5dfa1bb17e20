"""What `bertnas slurm` is told of a cluster, as frozen dataclasses."""

import dataclasses
from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from nni_bertnas.config.kinds import STRICT, Natural, PathText, Positive
from nni_bertnas.errors import lookup

# The kinds of jobs, and what each does. A study has those of them for which there is something to do.
JOBS = {
    "prepare": "what all cells need: teacher, features, general text",
    "cell": "the cell phase, a task of an array per unit",
    "block": "the block phase, a task per block",
    "rows": "further rows for the student, beside cell and block",
    "supernet": "the supernet phase",
    "frontier": "students along the front, one after another",
    "baselines": "students of random and uniform cells, one after another",
    "report": "the closing table and the report's page",
}
_AS = {"frontier": "supernet", "baselines": "supernet"}  # what a kind has as another one, as both do the same
Word = Annotated[str, Field(pattern=r"^\S+$")]
Line = Annotated[str, Field(pattern=r"^[^\r\n]+$")]
Hours = Annotated[float, Field(gt=0)]
Gibibytes = Annotated[float, Field(gt=0)]
Options = list[Annotated[str, Field(pattern=r"^--[\w-]+(=[^\r\n]*)?$")]]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class JobSettings:
    """What one kind of job has otherwise than the others; null: as they."""

    hours: Hours | None = None  # after which Slurm ends it
    cpus: Positive | None = None
    memory_gib: Gibibytes | None = None
    gpus: Natural | None = None
    partition: Word | None = None
    constraint: Word | None = None  # of nodes
    at_once: Positive | None = None  # tasks of an array
    options: Options | None = None  # further ones of sbatch, --name or --name=value


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ClusterProfile(JobSettings):
    """What all jobs have, and how they live on a cluster."""

    hours: Hours = 4.0
    cpus: Positive = 4
    memory_gib: Gibibytes = 8.0
    gpus: Natural = 0
    options: Options = dataclasses.field(default_factory=list)
    account: Word | None = None
    qos: Word | None = None
    mail: Word | None = None  # address
    mail_type: Word = "END,FAIL"
    modules: list[Line] = dataclasses.field(default_factory=list)  # that are loaded
    setup: list[Line] = dataclasses.field(default_factory=list)  # lines of shell before the work, after the modules
    environment_file: PathText | None = None  # lines NAME=value that every job reads, such as keys; for you alone
    retries: Natural = 1  # of a job whose work failed, perhaps by its node
    restarts: Positive = 20  # of a job whose time was up, each from what is finished
    jobs: dict[str, JobSettings] = dataclasses.field(default_factory=dict)  # by a key of JOBS

    def __post_init__(self) -> None:
        for name in self.jobs:
            lookup(JOBS, name, "jobs")

    def of(self, job: str) -> JobSettings:
        """All that one kind of job has."""
        names = [field.name for field in dataclasses.fields(JobSettings)]
        common = {name: getattr(self, name) for name in names}
        for kind in (_AS.get(job, job), job):
            own = self.jobs.get(kind, JobSettings())
            common |= {name: value for name in names if (value := getattr(own, name)) is not None}
        return JobSettings(**common)
