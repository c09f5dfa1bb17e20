"""Stage features: the teacher runs once over the data, and what it gives is stored.

Built in place: shards that are damaged, or that an interrupted build left out, are made anew, and they alone.
"""

import itertools
import json
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nni_bertnas.artifacts import RESULT, fingerprint, read_result, write_whole
from nni_bertnas.config import to_dict
from nni_bertnas.data.tokens import CHUNK, tokenize, tokenize_stream
from nni_bertnas.data.transfer import load_transfer, transfer_fingerprint
from nni_bertnas.machine import best_device
from nni_bertnas.stages.cells import measure_operations
from nni_bertnas.stages.run import ANSWERS, Result, Run, Unit
from nni_bertnas.stages.stage import Stage, stage_fingerprint
from nni_bertnas.store.budget import rows_within
from nni_bertnas.store.reader import FeatureStore
from nni_bertnas.store.writer import SplitWriter
from nni_bertnas.student.runtimes import check_runtime
from nni_bertnas.tracking.tracker import Tracker
from nni_bertnas.training.siamese import Answered, fit_siamese

_CHECKED = "checked.json"  # size and time of every file when its checksums were last right
_log = logging.getLogger(__name__)


def _fingerprint(run: Run, unit: Unit) -> str:
    """Of teacher, data, edges and how they are stored."""
    study = run.study
    teacher = stage_fingerprint(run, "teacher")
    transfer = transfer_fingerprint(study.transfer, study.task)
    return fingerprint(teacher, transfer, run.edges, to_dict(study.features), run.separate, run.teacher_kind)


def _check(run: Run, unit: Unit) -> None:
    check_runtime(run.study.supernet.latency_runtime, "supernet.latency_runtime")
    transfer_fingerprint(run.study.transfer, run.study.task)  # says which file or split is missing


def _stamps(folder: Path) -> dict[str, list[int]]:
    """Size and time of every file of every split."""
    files = sorted(file for file in folder.glob("*/*") if file.is_file())
    stats = {str(file.relative_to(folder)): file.stat() for file in files}
    return {name: [status.st_size, status.st_mtime_ns] for name, status in stats.items()}


def _unchanged(run: Run, result: Result) -> bool:
    """Whether the files are as they were when their checksums were last right."""
    folder = run.folder("features")
    try:
        before: Any = json.loads((folder / _CHECKED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(before == _stamps(folder))


def _make(run: Run, unit: Unit, folder: Path, tracker: Tracker) -> Result:
    start, study = time.perf_counter(), run.study
    teacher, tokenizer = run.load_teacher()
    teacher.to(best_device())
    max_length, own = study.task.max_length, run.data.splits
    chunks = itertools.chain(own["train"].chunks(CHUNK), load_transfer(study.transfer, study.task, own))
    data = {
        "train": tokenize_stream(tokenizer, chunks, max_length),
        "dev": tokenize(tokenizer, own["dev"], max_length),
    }
    encoder, dtype = run.load_encoder(), study.features.dtype
    answering = None if run.teacher_kind == "siamese" else teacher
    dev = SplitWriter(folder / "dev", answering, data["dev"], run.edges, dtype, encoder=encoder)
    stored = rows_within(study.features, dev.layout.token_bytes(), data["train"].lengths, int(data["dev"].offsets[-1]))
    train = SplitWriter(folder / "train", answering, data["train"], run.edges, dtype, stored, encoder)
    before = read_result(folder, _fingerprint(run, unit))
    (folder / RESULT).unlink(missing_ok=True)
    (folder / _CHECKED).unlink(missing_ok=True)
    (folder / ANSWERS).unlink(missing_ok=True)
    train.write(tracker.progress)
    dev.write(tracker.progress)
    if run.teacher_kind != "cross":
        _fit_answers(run, folder, len(run.data.splits["train"]))
    write_whole(folder / _CHECKED, json.dumps(_stamps(folder)))
    measure_operations(run)
    seconds = time.perf_counter() - start
    result: Result = {
        "edges": run.edges,
        "num_bytes": sum(file.stat().st_size for file in folder.rglob("*.*")),
        "stored_rows": int(stored.sum()),
        "seconds": seconds if before is None else before["seconds"],  # of the build, not of the repair
    }
    _log.info("stored features at edges %s: %.0f MB in %.0f s", run.edges, result["num_bytes"] / 1e6, result["seconds"])
    return result


def _fit_answers(run: Run, folder: Path, labelled: int) -> None:
    """Fit a siamese teacher's answers to the labelled rows of train, its share beside the cross-encoder to dev."""
    parts = []
    for split, count in (("train", labelled), ("dev", None)):
        store = FeatureStore(folder / split)
        first, second = store.vectors(np.arange(len(store))[:count]).chunk(2)
        vectors = torch.cat([first, second], dim=1).numpy()
        parts.append(Answered(vectors, store.logits[:count], store.labels[:count]))
    num_labels = 1 if run.task.regression else len(run.data.label_names)
    train, dev = parts
    found = fit_siamese(train, dev, num_labels, both=run.teacher_kind == "both")
    found.save(folder / ANSWERS)
    _log.info("the cross-encoder has %.0f %% of the answers", 100 * found.share)


STAGE = Stage(
    name="features",
    units=lambda run: [{}],
    fingerprint=_fingerprint,
    make=_make,
    describe=lambda run, result: f"edges {result['edges']}, {result['num_bytes'] / 1e6:.0f} MB",
    needs=lambda run, unit: [("teacher", {})],
    check=_check,
    fits=_unchanged,
    in_place=True,
    checks=True,
)
