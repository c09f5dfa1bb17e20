"""Units whose trials fail: tried once more, and then left out where a study can do without them."""

import logging
from collections.abc import Callable, Sequence

from nni_bertnas.errors import PhaseError
from nni_bertnas.launch.experiments import Failure
from nni_bertnas.stages.left_out import leave_out
from nni_bertnas.stages.run import Run, Unit, unit_name
from nni_bertnas.stages.stage import Stage, found_whole

_log = logging.getLogger(__name__)


def make_units(
    run: Run, stage: Stage, units: Sequence[Unit], experiment: Callable[[Sequence[Unit]], list[Failure]]
) -> None:
    """Make units by one experiment, and those that are not there then by one more each.

    Args:
        run: Of the study.
        stage: Of the units.
        units: To be made.
        experiment: Runs one for some units, and gives the trials that failed.

    Raises:
        PhaseError: A unit failed twice, and the study cannot do without it.
    """
    failures = experiment(units)
    for unit in _missing(run, stage, units):
        _log.warning("%s; it is tried once more", _why(failures, unit))
        failures = [*experiment([unit]), *failures]
    lost = _missing(run, stage, units)
    if lost and not stage.spares(run, [unit for unit in units if unit not in lost]):
        raise PhaseError(f"{_why(failures, lost[0])}; it was tried twice")
    for unit in lost:
        why = _why(failures, unit)
        path = leave_out(run, stage, unit, why)
        _log.warning(
            "%s %s is left out, as it failed twice: %s; to try it again remove %s", stage.name, unit_name(unit), why,
            path,
        )  # fmt: skip


def _missing(run: Run, stage: Stage, units: Sequence[Unit]) -> list[Unit]:
    run.refresh()
    return [unit for unit in units if found_whole(run, stage, unit) is None]


def _why(failures: Sequence[Failure], unit: Unit) -> str:
    found = [one.why for one in failures if dict(one.parameters) == dict(unit)]
    return found[0] if found else f"trial {dict(unit)} left no result"
