"""What a study will make, for people to read."""

import shutil
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

from nni_bertnas.machine import memory_bytes, num_cores
from nni_bertnas.report.progress import spell_seconds
from nni_bertnas.stages.plan import UNCERTAIN, Count, Plan, Work
from nni_bertnas.stages.stage import load, trials_at_once

_GIGA = 1e9


def show_plan(plan: Plan, study: Path, console: Console) -> None:
    """Print stages with their units, steps and times, then disk and memory.

    Args:
        plan: What is shown.
        study: The study's file.
        console: Takes it.
    """
    table = Table(title=f"{plan.sizes.run.study.name}: what there is to make")
    for column in ("stage", "units", "finished", "steps", "time"):
        table.add_column(column, justify="left" if column in ("stage", "steps") else "right")
    for work in plan.works:
        table.add_row(work.stage, str(work.units), str(work.finished), _said(work.count), _time(work))
    console.print(table)
    for text in _notes(plan, study):
        console.print(text, highlight=False, soft_wrap=True)


def _said(count: Count) -> str:
    steps = sum(number for kind, number in count.items() if "_step" in kind)
    pieces = count.get("teacher_piece", 0) + count.get("stored_piece", 0)
    parts = []
    if steps:
        parts.append(f"{steps:,.0f} training steps")
    if pieces:
        parts.append(f"{pieces / 1e6:,.2f} M word pieces through the teacher")
    return ", ".join(parts)


def _time(work: Work) -> str:
    if work.finished == work.units:
        return "finished"
    return "not known" if work.seconds is None else spell_seconds(work.seconds)


def _notes(plan: Plan, study: Path) -> Iterator[str]:
    sizes, run = plan.sizes, plan.sizes.run
    rows = ", ".join(f"{name} {len(split):,}" for name, split in run.data.splits.items())
    yield f"rows: {rows}; without labels {len(sizes.train) - sizes.labelled:,}"
    need, root = sizes.feature_bytes / _GIGA, run.root.resolve()
    free = shutil.disk_usage(next(path for path in (root, *root.parents) if path.exists())).free / _GIGA
    share = (
        f" (hidden states of {sizes.stored.mean():.0%} of train, features.max_gigabytes)"
        if not sizes.stored.all()
        else ""
    )
    yield f"disk: {need:.2f} GB for the features{share}, and models; {free:.0f} GB are free in {root.parent}"
    if need > free:
        yield "that does not fit: set features.max_gigabytes, or features.dtype to int8, or runs_dir to another disk"
    if plan.pace is None:
        yield f"all is finished: bertnas report {study}"
        return
    at_once = max(trials_at_once(run, load(name)) for name in ("cell", "block"))
    yield (
        f"memory: {plan.pace.memory_bytes / _GIGA:.1f} GB in one process, measured; up to {at_once} trials at once, of "
        f"{memory_bytes() / _GIGA:.0f} GB there are"
    )
    low, high = plan.seconds / UNCERTAIN, plan.seconds * UNCERTAIN
    yield (
        f"time: {spell_seconds(plan.seconds)} on {num_cores()} core(s), uncertain by a factor of {UNCERTAIN:g}: "
        f"{spell_seconds(low)} to {spell_seconds(high)}"
    )
    if plan.pace.busy:
        yield (
            f"other work took {plan.pace.others:.1f} cores meanwhile: the times are those of a machine at rest, by the "
            "processor's time, and less certain; beside such work it takes longer"
        )
    yield f"next: bertnas run {study} --smoke, or bertnas run {study}"
