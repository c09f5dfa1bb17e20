"""Stage corrupt: corrupted texts of train, labelled by the teacher, for the student alone. Built in place."""

import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from nni_bertnas.artifacts import fingerprint
from nni_bertnas.augment.corrupt import corruptions
from nni_bertnas.errors import ConfigError
from nni_bertnas.stages.labelled import label_rows
from nni_bertnas.stages.run import Result, Run, Unit
from nni_bertnas.stages.stage import Stage, stage_fingerprint
from nni_bertnas.tracking.tracker import Tracker

ROWS = "rows.parquet"


def _check(run: Run, unit: Unit) -> None:
    if run.task.pairs:
        raise ConfigError("augment.corruptions: is for tasks of single texts; mine new pairs with the section pairs")


def _make(run: Run, unit: Unit, folder: Path, tracker: Tracker) -> Result:
    start, train = time.perf_counter(), run.data.splits["train"]
    known = {text for rows in run.data.splits.values() for text in rows.texts}
    made = [
        one for one in corruptions(train.texts, run.study.augment.corruptions, run.study.seed) if one[1] not in known
    ]
    if not made:
        raise ConfigError("augment.corruptions: no text of train can be corrupted; set it to 0")
    origin, texts = zip(*made, strict=True)
    parquet.write_table(pa.table({run.task.texts[0]: texts, "row": origin}), folder / ROWS)
    logits = label_rows(run, folder, list(texts), progress=tracker.progress).logits
    own, single = run.train.logits[: len(train)], bool(run.data.label_names) and not run.task.multi_label
    return {
        "rows": len(texts),
        # Share of the texts whose answer is another than that of the text they come from.
        "changed": None if not single else float((logits.argmax(1) != own[list(origin)].argmax(1)).mean()),
        "answers": None if not single else np.bincount(logits.argmax(1), minlength=logits.shape[1]).tolist(),
        "seconds": time.perf_counter() - start,
    }


def _describe(run: Run, result: Result) -> str:
    changed = "" if result["changed"] is None else f", {result['changed']:.0%} with another answer than before"
    return f"{result['rows']} corrupted texts{changed}; in {run.folder('corrupt') / ROWS}"


STAGE = Stage(
    name="corrupt",
    units=lambda run: [{}] if run.study.augment.corruptions else [],
    fingerprint=lambda run, unit: fingerprint(
        stage_fingerprint(run, "teacher"), run.study.seed, run.study.augment.corruptions
    ),
    make=_make,
    describe=_describe,
    needs=lambda run, unit: [("teacher", {}), ("features", {})],
    check=_check,
    in_place=True,
    missing="set augment.corruptions to the new texts per row that you want, e.g. 8",
)
