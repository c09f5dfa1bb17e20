"""`bertnas STAGE STUDY`: one stage, and the smaller ones that it needs."""

import shutil
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nni_bertnas.cli.show import open_teller
from nni_bertnas.errors import ConfigError
from nni_bertnas.launch.experiments import announced, make_config, run_experiment
from nni_bertnas.launch.trial_server import server
from nni_bertnas.report.progress import Teller, Watcher, spell_seconds
from nni_bertnas.report.trials import spell_jobs
from nni_bertnas.stages.outline import write_outline
from nni_bertnas.stages.run import Run, Unit, unit_name
from nni_bertnas.stages.stage import Stage, check_unit, ensure, found_whole, load
from nni_bertnas.study_files import load_study
from nni_bertnas.tracking.logs import LOG, open_log


def run(arguments: Namespace) -> None:
    """Make one stage of a study."""
    opened = Run(load_study(arguments.study))
    stage = load(arguments.command)
    if not stage.units(opened):
        raise ConfigError(f"{stage.name}: the study asks for none; {stage.missing}")
    with open_log(opened.root / LOG):
        teller = open_teller(arguments)
        write_outline(opened)
        for needed, _ in stage.needs(opened, stage.units(opened)[0]):
            if load(needed).optimize is None:  # a phase through NNI is a command of its own
                make(opened, load(needed), arguments.study, teller)
        make(opened, stage, arguments.study, teller)


def make(run: Run, stage: Stage, study_path: Path, teller: Teller) -> None:
    """Make all units of a stage that are not there, with progress, and say what came out.

    Args:
        run: Of the study.
        stage: To be made.
        study_path: The study's file, which NNI's trials read.
        teller: Takes what is said.
    """
    start, units = time.perf_counter(), stage.units(run)
    missing = [unit for unit in units if found_whole(run, stage, unit) is None]
    if not missing:
        for unit in units:
            run.record(stage.name, unit).end("reused")
            shutil.rmtree(run.unfinished(stage.name, unit), ignore_errors=True)
            _say(run, stage, unit, teller, "reused")
        return
    if stage.optimize is None:
        for unit in missing:
            _in_process(run, stage, unit, teller)
    else:
        _through_nni(run, stage, units, study_path, teller)
    seconds = time.perf_counter() - start
    run.record_seconds(stage.name, seconds)
    if stage.optimize is None:
        for unit in units:
            _say(run, stage, unit, teller, f"{seconds:.0f} s")


def _say(run: Run, stage: Stage, unit: Unit, teller: Teller, how: str) -> None:
    result = run.read(stage.name, unit)
    name = f"{stage.name} {unit_name(unit)}".strip()
    # NNI may show a trial with another's parameters, whose own result is not there yet.
    text = "finished" if result is None else stage.describe(run, result)
    teller.say(f"{name}: {text} ({how})")


def _in_process(run: Run, stage: Stage, unit: Unit, teller: Teller) -> None:
    with teller.work(stage.name) as work, run.tracker(stage.name, unit, watcher=Watcher(teller, work)) as tracker:
        ensure(run, stage.name, unit, tracker)


def _through_nni(run: Run, stage: Stage, units: Sequence[Unit], study_path: Path, teller: Teller) -> None:
    done: set[str] = set()
    told: list[str] = []
    with teller.work(stage.name) as work, server() as socket, announced(run, stage) as announce:
        teller.say(f"{stage.name}: starting NNI")
        config = make_config(run, study_path, stage, units, socket)

        def show(jobs: list[Any], address: str) -> None:
            if not told:
                told.append(address)
                announce(address)
                teller.say(f"{stage.name}: {len(units)} trial(s), web UI at {address}")
            for job in jobs:
                if job.status == "SUCCEEDED" and job.trialJobId not in done:
                    done.add(job.trialJobId)
                    unit = check_unit(stage, job.hyperParameters[0].parameters)
                    _say(run, stage, unit, teller, spell_seconds((job.endTime - job.startTime) / 1000))
            work.what = "trials"
            work.say(spell_jobs(run, stage, jobs, len(units), config.trial_concurrency), len(done), len(units))

        run_experiment(config, run.study.nni.port, show)
    run.refresh()
