"""The contract of all stages, and what is done with it: a unit found, made, or ensured."""

import importlib
import logging
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from nni_bertnas import ranks
from nni_bertnas.artifacts import atomic_folder, clear_leftovers, damaged_file, disk_errors, read_result
from nni_bertnas.config import Study
from nni_bertnas.errors import ConfigError, PhaseError
from nni_bertnas.machine import memory_bytes, num_cores
from nni_bertnas.stages import STAGES
from nni_bertnas.stages.locks import one_at_a_time
from nni_bertnas.stages.run import Result, Run, Unit, unit_name
from nni_bertnas.study_files import check
from nni_bertnas.tracking.histories import HISTORY, read_history, record_name
from nni_bertnas.tracking.tracker import Tracker
from nni_bertnas.training.resume import unfinished

_log = logging.getLogger(__name__)


def _numbers(run: Run, result: Result) -> dict[str, float]:
    return {name: value for name, value in result.items() if isinstance(value, int | float)}


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of a study.

    A unit of work is done into a fresh folder that takes its place when it is whole. Two exceptions: with `in_place`,
    `make` is given the folder as an interrupted or damaged run left it; and a cell search that blocks share writes the
    other blocks' results itself, before its own is there.

    Attributes:
        name: Of its row in STAGES, its folder, its command, its job type.
        units: All units of work that the study asks for.
        fingerprint: A hash of all that a unit's result depends on.
        make: Does a unit's work in a folder; gives its result, to which the fingerprint is added.
        describe: A result in one line.
        parameters: Names and types of a unit's parameters.
        needs: The stages and units that are made first where they are missing.
        check: Raises a ConfigError for a unit that cannot be.
        fits: Whether a result with the right fingerprint serves.
        metrics: What NNI and W&B are told of a result; `default` is the main number of an NNI trial.
        table: The rows that W&B shows of a result, all with equal columns.
        model: Folder of the saved model inside a result.
        optimize: Whether that number is to be low or high; None: it is no NNI experiment.
        devices: The key of `devices` that holds for it; empty: that of its name, or none.
        alone: Whether no other trial may run beside one, as latency is measured.
        in_place: See above.
        checks: Whether what lies in folders inside the result has checksums of its own, which `fits` goes by.
        spares: Whether the study can do without those of its units that are not among some finished ones.
        missing: What to set where the study asks for no unit.
    """

    name: str
    units: Callable[[Run], list[Unit]]
    fingerprint: Callable[[Run, Unit], str]
    make: Callable[[Run, Unit, Path, Tracker], Result]
    describe: Callable[[Run, Result], str]
    parameters: Mapping[str, type] = field(default_factory=dict)
    needs: Callable[[Run, Unit], Iterable[tuple[str, Unit]]] = lambda run, unit: ()
    check: Callable[[Run, Unit], None] = lambda run, unit: None
    fits: Callable[[Run, Result], bool] = lambda run, result: True
    metrics: Callable[[Run, Result], Mapping[str, float]] = _numbers
    table: Callable[[Result], list[dict[str, Any]]] = lambda result: []
    model: str = ""
    optimize: Literal["minimize", "maximize"] | None = None
    devices: str = ""
    alone: bool = False
    in_place: bool = False
    checks: bool = False
    spares: Callable[[Run, Sequence[Unit]], bool] = lambda run, done: False
    missing: str = ""


def load(name: str) -> Stage:
    """The stage of a row of STAGES."""
    stage: Stage = importlib.import_module(f"nni_bertnas.stages.{name}").STAGE
    return stage


def stage_fingerprint(run: Run, name: str) -> str:
    """The fingerprint of a stage that depends on the study and its data alone, such as the teacher; made once."""
    if name not in run.fingerprints:
        run.fingerprints[name] = load(name).fingerprint(run, {})
    return run.fingerprints[name]


def find(run: Run, name: str, unit: Unit | None = None) -> Result | None:
    """The finished result of a unit, if it still fits the study and what it was made from.

    Raises:
        PhaseError: What it is made from is missing.
    """
    stage, unit = load(name), unit or {}
    folder, mark = run.folder(name, unit), stage.fingerprint(run, unit)
    try:
        result = read_result(folder, mark)
    except PhaseError as error:
        _log.warning("%s; it is made anew", str(error).partition(";")[0])
        return None
    if result is None or not stage.fits(run, result):
        return None
    if (damaged := damaged_file(folder)) is not None:
        _log.warning("%s is damaged; it is made anew", folder / damaged)
        return None
    return result


def found_whole(run: Run, stage: Stage, unit: Unit) -> Result | None:
    """The finished result of a unit, if all that it needs is there, too: without it nothing can be said of it."""
    for needed, part in stage.needs(run, unit):
        if found_whole(run, load(needed), part) is None:
            return None
    return find(run, stage.name, unit)


def ensure(run: Run, name: str, unit: Unit | None = None, tracker: Tracker | None = None) -> Result:
    """Make a unit, unless its finished result still fits; what it needs is made first.

    Args:
        run: Of the study.
        name: Of the stage.
        unit: The parameters of the unit; None where there is one alone.
        tracker: Takes the metrics; None: the unit's books alone do.

    Raises:
        ConfigError: There can be no such unit.
        PhaseError: What it is made from is missing, or nothing came out.
    """
    stage, unit = load(name), unit or {}
    if tracker is None:
        tracker = Tracker(books=run.books(name, unit))
        try:
            return ensure(run, name, unit, tracker)
        finally:
            tracker.close()
    stage.check(run, unit)
    for needed, part in stage.needs(run, unit):
        ensure(run, needed, part)
    with disk_errors(run.root), one_at_a_time(run.root, f"{name}-{unit_name(unit)}" if unit else name):
        result = find(run, name, unit)
        if result is None:
            result = _make(stage, run, unit, tracker)
            run.refresh()
        else:
            tracker.reuse()
            shutil.rmtree(run.unfinished(name, unit), ignore_errors=True)  # killed before it could
    tracker.table("candidates", stage.table(result))
    tracker.final(stage.metrics(run, result))
    if stage.model and run.study.tracking.wandb_artifact:
        name = f"{run.study.name}-{record_name(name, unit_name(unit))}"
        tracker.artifact(name, run.folder(stage.name, unit) / stage.model, stage.metrics(run, result))
    return result


def devices(run: Run, stage: Stage) -> tuple[int, str]:
    """How many processes make a unit of a stage together, and the key that says so."""
    name = stage.devices or stage.name
    return getattr(run.study.devices, name, 1), f"devices.{name}"


def _make(stage: Stage, run: Run, unit: Unit, tracker: Tracker) -> Result:
    target, mark = run.folder(stage.name, unit), stage.fingerprint(run, unit)
    together = ranks.together(*devices(run, stage))
    with together, unfinished(run.unfinished(stage.name, unit), mark) as before:
        kept = read_history(run.root / HISTORY, record_name(stage.name, unit_name(unit)))[: before.epochs]
        with tracker.working(kept), _filling(stage, target) as folder:
            before.count = lambda: tracker.epochs
            result = {"fingerprint": mark, **stage.make(run, unit, folder, tracker)}
            run.write(folder, result, deep=not (stage.in_place and stage.checks))
    return result


@contextmanager
def _filling(stage: Stage, target: Path) -> Iterator[Path]:
    """The folder that a unit is made in."""
    if stage.in_place:
        target.mkdir(parents=True, exist_ok=True)
        yield target
    else:
        clear_leftovers(target)
        with atomic_folder(target) as folder:
            yield folder


def check_unit(stage: Stage, unit: Unit) -> Unit:
    """A unit with its parameters in the stage's own order, as its folder's name has them; NNI's tuners have theirs.

    Raises:
        ConfigError: They are others.
    """
    wanted = stage.parameters
    if set(unit) != set(wanted) or not all(isinstance(unit[name], kind) for name, kind in wanted.items()):
        names = ", ".join(f"{name} as {'text' if kind is str else 'whole number'}" for name, kind in wanted.items())
        raise ConfigError(
            f"searchSpace: a {stage.name} trial takes {names}, got {dict(unit)}; run it "
            f"through nnictl create --config experiment_configs/{stage.name}.yml"
        )
    return {name: unit[name] for name in wanted}


def trials_at_once(run: Run, stage: Stage) -> int:
    """How many trials of a stage run beside each other: as many as cores, or all where cores would else stand idle."""
    if stage.alone:
        return 1
    units, cores = len(stage.units(run)), max(1, num_cores() // devices(run, stage)[0])
    at_once = units if units < 2 * cores else cores
    return run.study.nni.concurrency or max(1, min(at_once, memory_bytes() >> 31))


def check_all(run: Run) -> None:
    """Whether all that a study asks for can be made, as far as can be said before any of it is.

    Raises:
        ConfigError: It cannot.
    """
    check(run.study)
    for stage in map(load, STAGES):
        for unit in stage.units(run):
            stage.check(run, unit)


def run_study(study: Study) -> Run:
    """Everything that a study asks for, in this process and without NNI experiments around it.

    Raises:
        ConfigError: The study cannot be run.
        PhaseError: Nothing came out of a stage.
    """
    run = Run(study)
    check_all(run)
    for name in STAGES:
        for unit in load(name).units(run):
            ensure(run, name, unit)
    return run
