"""Stage general: what the pretrained model makes of text of no task in particular.

Made once per model and text, in a folder that all studies of a `runs_dir` share; the result names it.
"""

import logging
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nni_bertnas.artifacts import (
    atomic_folder,
    clear_leftovers,
    damaged_file,
    fingerprint,
    read_result,
    state_fingerprint,
)
from nni_bertnas.data.models import load_encoder, load_tokenizer, resolve_model, weights_fingerprint
from nni_bertnas.data.rows import UNLABELLED, Rows
from nni_bertnas.data.task_data import data_fingerprint
from nni_bertnas.data.texts import general_fingerprint, general_texts
from nni_bertnas.data.tokens import tokenize
from nni_bertnas.errors import PhaseError
from nni_bertnas.stages.run import Result, Run, Unit
from nni_bertnas.stages.stage import Stage, find
from nni_bertnas.store.writer import SplitWriter
from nni_bertnas.tracking.tracker import Tracker
from nni_bertnas.training.texts import PIECES, TEXTS, piece_vectors

_MARK = "fingerprint"  # of weights, in their own file
_log = logging.getLogger(__name__)


def _fingerprint(run: Run, unit: Unit) -> str:
    study, settings = run.study, run.study.general
    weights = weights_fingerprint(resolve_model(study.teacher.model))
    texts = general_fingerprint(settings.files) or [data_fingerprint(study.task)]
    parts = [weights, texts, run.general_rows, study.task.max_length]
    return fingerprint(*parts, settings.cells, run.cuts) if settings.cells else fingerprint(*parts)


def _check(run: Run, unit: Unit) -> None:
    general_fingerprint(run.study.general.files)  # says which file is missing


def _make(run: Run, unit: Unit, folder: Path, tracker: Tracker) -> Result:
    mark = _fingerprint(run, unit)
    target = run.shared / f"general-{mark}"
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_name(f".{target.name}.lock")):
        if (found := _read(target, mark)) is None:
            clear_leftovers(target)
            with atomic_folder(target) as fresh:
                found = {"fingerprint": mark, **_write(run, target.with_name(f".{target.name}.part"), fresh, tracker)}
                run.write(fresh, found)
    return {**found, "folder": str(target.resolve())}


def _read(folder: Path, mark: str) -> Result | None:
    """What is there already and whole."""
    try:
        found = read_result(folder, mark)
    except PhaseError:
        found = None
    return found if found is None or damaged_file(folder) is None else None


def _write(run: Run, part: Path, folder: Path, tracker: Tracker) -> Result:
    """Fill a folder, by way of another one in which the shards that are written stay when this is killed."""
    start, study = time.perf_counter(), run.study
    model, trusted = study.teacher.model, study.teacher.trust_remote_code
    encoder, tokenizer = load_encoder(model, trusted), load_tokenizer(model, trusted)
    texts = general_texts(study.general.files, run.general_rows, lambda: run.data.splits["train"].texts)
    rows = tokenize(tokenizer, Rows(texts, [UNLABELLED] * len(texts)), study.task.max_length)
    edges = run.cuts if study.general.cells else ()
    stored = np.arange(len(texts)) < study.general.cells
    SplitWriter(part / TEXTS, None, rows, edges, study.features.dtype, stored, encoder).write(tracker.progress)
    (part / TEXTS).rename(folder / TEXTS)
    shutil.rmtree(part)
    np.save(folder / PIECES, piece_vectors(encoder, tokenizer, tracker.progress))
    return {"rows": len(texts), "seconds": time.perf_counter() - start}


def general_folder(run: Run) -> Path | None:
    """Of what the pretrained model makes of general text; None where the study asks for none.

    Raises:
        PhaseError: It is not made yet.
    """
    if not run.general_rows:
        return None
    if (result := find(run, "general")) is None:
        raise PhaseError("there is no general text yet; make it with: bertnas general STUDY")
    return _folder(run, result)


def _folder(run: Run, result: Result) -> Path:
    """By its fingerprint: no path is taken from a file."""
    return run.shared / f"general-{result['fingerprint']}"


def save_shared(state: Mapping[str, Tensor], file: Path) -> None:
    """Write weights into that folder, where other processes may be at the same."""
    fresh, whole = file.with_name(f".{file.name}.{os.getpid()}"), {_MARK: state_fingerprint(state)}
    try:
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, fresh, metadata=whole)
        fresh.replace(file)
    finally:
        fresh.unlink(missing_ok=True)


def load_shared(file: Path) -> dict[str, Tensor] | None:
    """Weights out of that folder; None where there are none, or they are not as they were written."""
    if not file.is_file():
        return None
    try:
        with safe_open(file, "pt") as opened:
            state, mark = {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata()  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        _log.warning("%s is damaged (%s); it is made anew", file, error)
        return None
    if (mark or {}).get(_MARK) not in (None, state_fingerprint(state)):
        _log.warning("%s is damaged; it is made anew", file)
        return None
    return state


STAGE = Stage(
    name="general",
    units=lambda run: [{}] if run.general_rows else [],
    fingerprint=_fingerprint,
    make=_make,
    check=_check,
    describe=lambda run, result: f"{result['rows']} texts in {result['seconds']:.0f} s, in {result['folder']}",
    fits=lambda run, result: _read(_folder(run, result), result["fingerprint"]) is not None,
    missing="set general.rows to the texts that you want, e.g. 20000",
)
