"""What a study asks for, written down, so that who looks at a run need not load what makes it."""

import contextlib
from typing import Any

from nni_bertnas.stages import STAGES
from nni_bertnas.stages.run import Run, unit_name
from nni_bertnas.stages.stage import load, trials_at_once
from nni_bertnas.tracking.histories import HISTORY, OUTLINE, read_state, write_state


def make_outline(run: Run) -> dict[str, Any]:
    """The study's mark, and by stage the names of the units that it asks for and how many are made at once."""
    stages = {}
    for stage in map(load, STAGES):
        if units := stage.units(run):
            at_once = 1 if stage.optimize is None else trials_at_once(run, stage)
            stages[stage.name] = {"units": [unit_name(unit) for unit in units], "at_once": at_once}
    return {"study": run.mark, "stages": stages}


def write_outline(run: Run) -> None:
    """Write it, unless it stands there already; where it cannot be written, the work goes on without."""
    folder = run.root / HISTORY
    if read_state(folder, OUTLINE).get("study") != run.mark:
        with contextlib.suppress(OSError):
            write_state(folder, OUTLINE, make_outline(run))
