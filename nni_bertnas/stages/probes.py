"""Stage probes: linear classifiers on the teacher's edges, where a loss asks for their soft labels."""

import time
from pathlib import Path

from nni_bertnas.artifacts import fingerprint
from nni_bertnas.stages.run import PROBES, Result, Run, Unit
from nni_bertnas.stages.stage import Stage, stage_fingerprint
from nni_bertnas.tracking.tracker import Tracker
from nni_bertnas.training.probes import fit_probes

_ROWS = 20_000  # of train, enough for a linear classifier


def _make(run: Run, unit: Unit, folder: Path, tracker: Tracker) -> Result:
    start = time.perf_counter()
    num_labels = 1 if run.task.regression else len(run.data.label_names)
    probes = fit_probes(run.train, run.dev, run.edges[1:], num_labels, _ROWS)
    probes.save(folder / PROBES)
    quality = {str(edge): value for edge, value in zip(probes.edges, probes.quality.tolist(), strict=True)}
    return {"quality": quality, "seconds": time.perf_counter() - start}


STAGE = Stage(
    name="probes",
    units=lambda run: [{}] if run.probed else [],
    fingerprint=lambda run, unit: fingerprint(stage_fingerprint(run, "features")),
    make=_make,
    describe=lambda run, result: "weights of the edges " + ", ".join(
        f"{edge} {value:.2f}" for edge, value in result["quality"].items()
    ),
    needs=lambda run, unit: [("teacher", {}), ("features", {})],
    missing="give the loss probe a weight in cell.losses, block.losses or distill.losses, e.g. 0.1",
)  # fmt: skip
