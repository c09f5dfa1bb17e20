"""Stage general: what the pretrained model makes of text of no task in particular.

Made once per model and text, in a folder that all studies of a `runs_dir` share; the result names it.
"""

import time
from pathlib import Path

import numpy as np
from filelock import FileLock

from nni_bertnas.artifacts import atomic_folder, fingerprint, read_result
from nni_bertnas.data.models import load_encoder, load_tokenizer, resolve_model, weights_fingerprint
from nni_bertnas.data.rows import UNLABELLED, Rows
from nni_bertnas.data.task_data import data_fingerprint
from nni_bertnas.data.texts import general_fingerprint, general_texts
from nni_bertnas.data.tokens import tokenize
from nni_bertnas.stages.run import Result, Run, Unit
from nni_bertnas.stages.stage import Stage
from nni_bertnas.store.writer import SplitWriter
from nni_bertnas.tracking import Tracker
from nni_bertnas.training.texts import PIECES, TEXTS, piece_vectors


def _fingerprint(run: Run, unit: Unit) -> str:
    study, settings = run.study, run.study.general
    weights = weights_fingerprint(resolve_model(study.teacher.model))
    texts = general_fingerprint(settings.files) or [data_fingerprint(study.task)]
    return fingerprint(weights, texts, run.general_rows, study.task.max_length)


def _check(run: Run, unit: Unit) -> None:
    general_fingerprint(run.study.general.files)  # says which file is missing


def _make(run: Run, unit: Unit, folder: Path, tracker: Tracker) -> Result:
    mark = _fingerprint(run, unit)
    target = run.shared / f"general-{mark}"
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_name(f".{target.name}.lock")):
        if (found := read_result(target, mark)) is None:
            with atomic_folder(target) as fresh:
                found = {"fingerprint": mark, **_write(run, fresh)}
                run.write(fresh, found)
    return {**found, "folder": str(target.resolve())}


def _write(run: Run, folder: Path) -> Result:
    start, study = time.perf_counter(), run.study
    encoder, tokenizer = load_encoder(study.teacher.model), load_tokenizer(study.teacher.model)
    texts = general_texts(study.general.files, run.general_rows, lambda: run.data.splits["train"].texts)
    rows = tokenize(tokenizer, Rows(texts, [UNLABELLED] * len(texts)), study.task.max_length)
    SplitWriter(folder / TEXTS, None, rows, (), encoder=encoder).write()
    np.save(folder / PIECES, piece_vectors(encoder, tokenizer))
    return {"rows": len(texts), "seconds": time.perf_counter() - start}


STAGE = Stage(
    name="general",
    units=lambda run: [{}] if run.general_rows else [],
    fingerprint=_fingerprint,
    make=_make,
    check=_check,
    describe=lambda run, result: f"{result['rows']} texts in {result['seconds']:.0f} s, in {result['folder']}",
    fits=lambda run, result: Path(result["folder"]).is_dir(),
    missing="set general.rows to the texts that you want, e.g. 20000",
)
