"""Units whose trials failed twice, and that a study does without: kept beside the others, so that all know of it."""

import json
from collections.abc import Sequence
from pathlib import Path

from nni_bertnas.artifacts import write_whole
from nni_bertnas.stages.run import Run, Unit, unit_name
from nni_bertnas.stages.stage import Stage, found_whole

_FOLDER = ".left_out"  # in that of the stage


def _file(run: Run, stage: Stage, unit: Unit) -> Path:
    return run.root / stage.name / _FOLDER / f"{unit_name(unit)}.json"


def leave_out(run: Run, stage: Stage, unit: Unit, why: str) -> Path:
    """Do without a unit as long as it would be made of the same; gives the file that says so."""
    path = _file(run, stage, unit)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps({"fingerprint": stage.fingerprint(run, unit), "why": why}))
    return path


def left_out(run: Run, stage: Stage, unit: Unit) -> str | None:
    """Why a unit is done without, and what makes it be tried again; None where it is not."""
    path = _file(run, stage, unit)
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        why = str(kept["why"]) if kept["fingerprint"] == stage.fingerprint(run, unit) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return None if why is None else f"{why}; to try it again remove {path}"


def missing_units(run: Run, stage: Stage, units: Sequence[Unit]) -> list[Unit]:
    """Those that are neither there nor left out."""
    return [unit for unit in units if found_whole(run, stage, unit) is None and left_out(run, stage, unit) is None]
