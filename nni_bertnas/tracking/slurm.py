"""The jobs of a run that were handed to Slurm, and what Slurm says of them. It takes nothing heavy to import."""

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

FOLDER = "slurm"  # under a run's root: scripts, what they said, and the jobs that they became
JOBS = "jobs.txt"  # in it: a line `name id` per job
LIVE = ("RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "STOPPED")
WAITING = ("PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT")
_PATIENCE_SECONDS = 20.0


@dataclass(frozen=True)
class Task:
    """One job as `squeue` lists it; of an array, one of its tasks.

    Attributes:
        job: The number that `sbatch` gave, which all tasks of an array share.
        own: The number that the task itself finds in SLURM_JOB_ID.
        state: Slurm's word.
        reason: Why it waits or failed.
    """

    job: str
    own: str
    state: str
    reason: str


def read_jobs(root: Path) -> dict[str, str]:
    """Number of every job of a run by name; none where nothing was handed to Slurm."""
    try:
        lines = (root / FOLDER / JOBS).read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    return dict(words for line in lines if len(words := line.split()) == 2)


def ask(jobs: Mapping[str, str]) -> list[Task] | None:
    """What Slurm knows of jobs: of finished ones for some minutes only.

    Args:
        jobs: Their numbers, by name.

    Returns:
        None where it cannot be asked, as on another machine.
    """
    if not jobs or shutil.which("squeue") is None:
        return None
    command = ["squeue", "--noheader", "--array", "--states=all", "--me", "--format=%F|%A|%T|%r"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=_PATIENCE_SECONDS, env=_plain()
        )
    except (OSError, subprocess.SubprocessError):
        return None
    lines = (line.split("|") for line in done.stdout.splitlines())
    tasks = [Task(*words) for words in lines if len(words) == 4]
    return [task for task in tasks if task.job in jobs.values()]


def _plain() -> dict[str, str]:
    """The environment without what would change the form of the answer."""
    return {name: value for name, value in os.environ.items() if not name.startswith("SQUEUE_")}


def is_live(own: str, tasks: Sequence[Task]) -> bool:
    """Whether a job that works on a unit still runs."""
    return any(task.own == own and task.state in LIVE for task in tasks)
