"""`bertnas STAGE STUDY`: one stage, and the smaller ones that it needs."""

import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from nni_bertnas.cli.show import open_console
from nni_bertnas.errors import ConfigError
from nni_bertnas.launch.experiments import make_config, run_experiment
from nni_bertnas.launch.trial_server import server
from nni_bertnas.stages.run import Run, Unit, unit_name
from nni_bertnas.stages.stage import Stage, check_unit, ensure, found_whole, load
from nni_bertnas.study_files import load_study


def run(arguments: Namespace) -> None:
    """Make one stage of a study."""
    opened = Run(load_study(arguments.study))
    stage = load(arguments.command)
    if not stage.units(opened):
        raise ConfigError(f"{stage.name}: the study asks for none; {stage.missing}")
    console = open_console()
    for needed, _ in stage.needs(opened, stage.units(opened)[0]):
        if load(needed).optimize is None:  # a phase through NNI is a command of its own
            make(opened, load(needed), arguments.study, console)
    make(opened, stage, arguments.study, console)


def make(run: Run, stage: Stage, study_path: Path, console: Console) -> None:
    """Make all units of a stage that are not there, with progress, and say what came out.

    Args:
        run: Of the study.
        stage: To be made.
        study_path: The study's file, which NNI's trials read.
        console: Takes what is said.
    """
    start, units = time.perf_counter(), stage.units(run)
    missing = [unit for unit in units if found_whole(run, stage, unit) is None]
    if not missing:
        for unit in units:
            _say(run, stage, unit, console, "reused")
        return
    if stage.optimize is None:
        for unit in missing:
            _in_process(run, stage, unit, console)
    else:
        _through_nni(run, stage, units, study_path, console)
    seconds = time.perf_counter() - start
    run.record_seconds(stage.name, seconds)
    if stage.optimize is None:
        for unit in units:
            _say(run, stage, unit, console, f"{seconds:.0f} s")


def _say(run: Run, stage: Stage, unit: Unit, console: Console, how: str) -> None:
    result = run.read(stage.name, unit)
    name = f"{stage.name} {unit_name(unit)}".strip()
    # NNI may show a trial with another's parameters, whose own result is not there yet.
    text = "finished" if result is None else stage.describe(run, result)
    console.print(f"{name}: {text} ({how})", highlight=False, soft_wrap=True)


class _Watcher:
    """Shows epochs and progress of a unit that is made in this process."""

    def __init__(self, name: str, console: Console, bar: Progress) -> None:
        self.name, self.console, self.bar = name, console, bar
        self.start = time.perf_counter()

    def epoch(self, metrics: Mapping[str, float]) -> None:
        """See :class:`~nni_bertnas.tracking.Watcher`."""
        shown = (f"{key} {metrics[key]:.3f}" for key in metrics if key.startswith(("train_loss", "dev_")))
        done = f"epoch {metrics['epoch'] + 1:.0f}: {', '.join(shown)}"
        self.console.print(f"{self.name}: {done}, {time.perf_counter() - self.start:.0f} s", highlight=False)

    def progress(self, done: int, total: int) -> None:
        """See :class:`~nni_bertnas.tracking.Watcher`."""
        rate = f"{done / (time.perf_counter() - self.start):.1f} rows/s"
        self.bar.update(self.bar.task_ids[0], completed=done, total=total, description=rate)


def _bar(name: str, console: Console) -> Progress:
    columns = TextColumn(name), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}")
    return Progress(*columns, console=console, transient=True)


def _in_process(run: Run, stage: Stage, unit: Unit, console: Console) -> None:
    with _bar(stage.name, console) as bar:
        bar.add_task("", total=None)
        watcher = _Watcher(stage.name, console, bar)
        with run.tracker(stage.name, unit, watcher=watcher) as tracker:
            ensure(run, stage.name, unit, tracker)


def _through_nni(run: Run, stage: Stage, units: Sequence[Unit], study_path: Path, console: Console) -> None:
    done: set[str] = set()
    with _bar(stage.name, console) as bar:
        task = bar.add_task("starting NNI", total=len(units))

        def show(jobs: list[Any], address: str) -> None:
            if not bar.tasks[0].fields.get("told"):
                console.print(f"{stage.name}: {len(units)} trial(s), web UI at {address}", highlight=False)
                bar.update(task, told=True)
            for job in jobs:
                if job.status == "SUCCEEDED" and job.trialJobId not in done:
                    done.add(job.trialJobId)
                    unit = check_unit(stage, job.hyperParameters[0].parameters)
                    _say(run, stage, unit, console, f"{(job.endTime - job.startTime) / 1000:.0f} s")
            bar.update(task, completed=len(done), description=address)

        with server() as address:
            run_experiment(make_config(run, study_path, stage, units, address), run.study.nni.port, show)
    run.refresh()
