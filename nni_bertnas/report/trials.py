"""How an NNI experiment stands, in words: its trials, the best score so far, what the running ones are at."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nni_bertnas.report.progress import spell_epoch, spell_seconds
from nni_bertnas.stages.run import Run, unit_name
from nni_bertnas.stages.stage import Stage, check_unit
from nni_bertnas.tracking.histories import HISTORY, last_epoch, record_name

_WAITING, _DONE = ("WAITING", "UNKNOWN"), "SUCCEEDED"


def spell_jobs(run: Run, stage: Stage, jobs: Sequence[Any], total: int, at_once: int) -> str:
    """The trials of a stage in one line.

    Args:
        run: Of the study.
        stage: Whose trials.
        jobs: As NNI lists them.
        total: How many there will be.
        at_once: How many run beside each other.
    """
    states = Counter(job.status for job in jobs)
    failed = sum(count for state, count in states.items() if state not in (*_WAITING, _DONE, "RUNNING"))
    parts = [f"{states['RUNNING']} running, {failed} failed"]
    scores = [(score, job) for job in jobs if (score := _score(job)) is not None]
    if scores:
        best, job = (min if stage.optimize == "minimize" else max)(scores, key=lambda pair: pair[0])
        parts.append(f"best {best:.4f} ({_name(stage, job)})")
    took = [job_seconds(job) for job in jobs if job.status == _DONE and job.endTime]
    if took and len(took) < total:
        parts.append(f"about {spell_seconds(sum(took) / len(took) * (total - len(took)) / at_once)} left")
    parts += (at for job in jobs if job.status == "RUNNING" if (at := _epoch(run.root / HISTORY, stage, job)))
    return ", ".join(parts)


def job_seconds(job: Any) -> float:
    """How long a finished trial took, by clocks that may have been set meanwhile."""
    return max(0.0, (job.endTime - job.startTime) / 1000)


def _score(job: Any) -> float | None:
    """What a trial reported as its result; None where it has not yet."""
    if not job.finalMetricData:
        return None
    data = job.finalMetricData[-1].data
    return float(data["default"] if isinstance(data, dict) else data)


def _name(stage: Stage, job: Any) -> str:
    return unit_name(check_unit(stage, job.hyperParameters[0].parameters)) if job.hyperParameters else "?"


def _epoch(folder: Path, stage: Stage, job: Any) -> str:
    """The last epoch of a running trial."""
    name = _name(stage, job)
    found = last_epoch(folder, record_name(stage.name, name))
    return f"{name} at {spell_epoch(found)}".removesuffix(": ") if found else ""
