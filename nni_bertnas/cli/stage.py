"""`bertnas STAGE STUDY`: one stage, and the smaller ones that it needs."""

import logging
import secrets
import shutil
import time
from argparse import Namespace
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nni_bertnas.artifacts import disk_errors
from nni_bertnas.cli.show import open_teller
from nni_bertnas.errors import ConfigError
from nni_bertnas.launch.experiments import Failure, announced, make_config, quiet_nni, run_experiment
from nni_bertnas.launch.machines import load_machines
from nni_bertnas.launch.public import public_portal
from nni_bertnas.launch.remote import Remote
from nni_bertnas.launch.second_try import make_units
from nni_bertnas.launch.trial_server import server
from nni_bertnas.machine import set_threads
from nni_bertnas.report.progress import Teller, Watcher, spell_seconds
from nni_bertnas.report.trials import job_seconds, spell_jobs
from nni_bertnas.stages.left_out import left_out, missing_units
from nni_bertnas.stages.outline import write_outline
from nni_bertnas.stages.run import Run, Unit, unit_name
from nni_bertnas.stages.stage import Stage, check_unit, ensure, found_whole, load
from nni_bertnas.study_files import load_study
from nni_bertnas.tracking.logs import LOG, open_log

_log = logging.getLogger(__name__)


def run(arguments: Namespace) -> None:
    """Make one stage of a study."""
    opened = Run(load_study(arguments.study))
    stage = load(arguments.command)
    if not stage.units(opened):
        raise ConfigError(f"{stage.name}: the study asks for none; {stage.missing}")
    with disk_errors(opened.root), open_log(opened.root / LOG):
        teller = open_teller(arguments)
        write_outline(opened)
        if arguments.unit is not None:
            make_one(opened, stage, arguments.unit, teller)
            return
        where = open_where(arguments, opened, arguments.study, teller)
        for needed, _ in stage.needs(opened, stage.units(opened)[0]):
            if load(needed).optimize is None:  # a phase through NNI is a command of its own
                make(opened, load(needed), arguments.study, teller, where)
        make(opened, stage, arguments.study, teller, where)


@dataclass(frozen=True, kw_only=True)
class Where:
    """Where stages are made, and who may look at NNI's web UI.

    Attributes:
        remote: Other machines; None: here.
        token: What others have to show; None: nobody else may look.
    """

    remote: Remote | None = None
    token: str | None = None


def open_where(arguments: Namespace, run: Run, study_path: Path, teller: Teller) -> Where:
    """What `--on` and `--public` ask for; other machines are asked whether they will do."""
    remote = None
    if arguments.on is not None:
        remote = Remote(load_machines(arguments.on), run, study_path)
        remote.prepare()
        teller.say(f"trials run on {', '.join(map(str, remote.machines.machines))}")
    return Where(remote=remote, token=secrets.token_urlsafe(32) if arguments.public else None)


def make(run: Run, stage: Stage, study_path: Path, teller: Teller, where: Where = Where()) -> None:
    """Make all units of a stage that are not there, with progress, and say what came out.

    Args:
        run: Of the study.
        stage: To be made.
        study_path: The study's file, which NNI's trials read.
        teller: Takes what is said.
        where: Here, or elsewhere.
    """
    start, units = time.perf_counter(), stage.units(run)
    missing = missing_units(run, stage, units)
    if not missing:
        for unit in units:
            if (why := left_out(run, stage, unit)) is not None and found_whole(run, stage, unit) is None:
                _log.warning("%s %s is left out: %s", stage.name, unit_name(unit), why)
                continue
            run.record(stage.name, unit).end("reused")
            shutil.rmtree(run.unfinished(stage.name, unit), ignore_errors=True)
            _say(run, stage, unit, teller, "reused")
        return
    if stage.optimize is not None:
        _through_nni(run, stage, units, study_path, teller, where)
    elif where.remote is not None:
        where.remote.make(stage)
        run.refresh()
    else:
        for unit in missing:
            _in_process(run, stage, unit, teller)
    seconds = time.perf_counter() - start
    run.record_seconds(stage.name, seconds)
    if stage.optimize is None:
        for unit in units:
            _say(run, stage, unit, teller, f"{seconds:.0f} s")


def make_one(run: Run, stage: Stage, number: int, teller: Teller) -> None:
    """Make one unit in this process, without an NNI experiment around it, as a job of a cluster does.

    Args:
        run: Of the study.
        stage: Of the unit.
        number: Of the unit among the stage's.
        teller: Takes what is said.

    Raises:
        ConfigError: There is no such unit.
    """
    start, units = time.perf_counter(), stage.units(run)
    if not 0 <= number < len(units):
        raise ConfigError(f"--unit must be 0 to {len(units) - 1}, got {number}")
    if run.study.nni.threads and not stage.alone:
        set_threads(1, run.study.nni.threads)
    if found_whole(run, stage, units[number]) is None:
        quiet_nni()
        _in_process(run, stage, units[number], teller)
        _say(run, stage, units[number], teller, f"{time.perf_counter() - start:.0f} s")
    else:
        run.record(stage.name, units[number]).end("reused")
        _say(run, stage, units[number], teller, "reused")


def _say(run: Run, stage: Stage, unit: Unit, teller: Teller, how: str) -> None:
    result = run.read(stage.name, unit)
    name = f"{stage.name} {unit_name(unit)}".strip()
    # NNI may show a trial with another's parameters, whose own result is not there yet.
    text = "finished" if result is None else stage.describe(run, result)
    teller.say(f"{name}: {text} ({how})")


def _in_process(run: Run, stage: Stage, unit: Unit, teller: Teller) -> None:
    with teller.work(stage.name) as work, run.tracker(stage.name, unit, watcher=Watcher(teller, work)) as tracker:
        ensure(run, stage.name, unit, tracker)


def _through_nni(run: Run, stage: Stage, units: Sequence[Unit], study_path: Path, teller: Teller, where: Where) -> None:
    remote = where.remote
    done: set[str] = set()
    told: list[str] = []
    at_once: list[int] = []
    forks = server() if remote is None else nullcontext()
    with teller.work(stage.name) as work, forks as socket, announced(run, stage) as announce, ExitStack() as opened:
        teller.say(f"{stage.name}: starting NNI")

        def show(jobs: list[Any], address: str) -> None:
            if remote is not None:
                remote.check()
            if told[-1:] != [address]:  # another manager's, where one was lost, is another
                told.append(address)
                announce(address)
                teller.say(f"{stage.name}: {len(units)} trial(s), web UI at {address}")
                if where.token is not None:
                    _open_to_others(opened.enter_context(public_portal(address, where.token)), where.token, teller)
            for job in jobs:
                if job.status == "SUCCEEDED" and job.trialJobId not in done:
                    done.add(job.trialJobId)
                    unit = check_unit(stage, job.hyperParameters[0].parameters)
                    _say(run, stage, unit, teller, spell_seconds(job_seconds(job)))
            work.what = "trials"
            work.say(spell_jobs(run, stage, jobs, len(units), at_once[-1]), len(done), len(units))

        def start(some: Sequence[Unit]) -> list[Failure]:
            def config() -> Any:
                found = make_config(run, study_path, stage, some, socket)
                if remote is not None:
                    remote.place(found, stage)
                at_once.append(found.trial_concurrency)
                return found

            return run_experiment(config, run.study.nni.port, show, None if remote is None else remote.hold_port)

        make_units(run, stage, units, start)


def _open_to_others(address: str, token: str, teller: Teller) -> None:
    """Say where others may look; the token stands on the terminal alone, not in the run's log."""
    teller.say(
        f"WARNING: the web UI can be seen from other machines at {address} by whoever has the token, which goes over "
        "the network in the clear; an SSH tunnel is safer, see docs/cluster.md"
    )
    teller.console.print(f"{address}/?token={token}", highlight=False, soft_wrap=True)
