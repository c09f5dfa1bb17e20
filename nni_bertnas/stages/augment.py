"""Stage augment: new rows of train after TinyBERT, labelled by the teacher, for the student alone."""

import json
import shutil
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from nni_bertnas.artifacts import file_fingerprint, fingerprint
from nni_bertnas.augment.parts import LABELLED, merge_parts, save_copies, write_parts
from nni_bertnas.augment.replace import Replacements, load_masked_lm
from nni_bertnas.augment.words import embedding_neighbours, read_vectors
from nni_bertnas.config import to_dict
from nni_bertnas.data.label_sets import indicators
from nni_bertnas.data.models import resolve_model, weights_fingerprint
from nni_bertnas.errors import ConfigError, PhaseError
from nni_bertnas.stages.labelled import label_rows
from nni_bertnas.stages.run import Result, Run, Unit
from nni_bertnas.stages.stage import Stage, stage_fingerprint
from nni_bertnas.tracking.tracker import Tracker

TEXTS = "rows.parquet"


def _masked_lm(run: Run) -> str:
    """The folder or hub name of the masked language model.

    Raises:
        PhaseError: None is named, and none is fitted.
    """
    named = run.study.augment.masked_lm
    if named is not None:
        return resolve_model(named, "augment.masked_lm")
    if run.read("masked_lm") is None:
        raise PhaseError("augment.masked_lm names no model and none is fitted; fit one with: bertnas masked_lm STUDY")
    return str(run.folder("masked_lm"))


def _fingerprint(run: Run, unit: Unit) -> str:
    """Of all that the new rows and their labels depend on, but for how many copies there are."""
    settings = to_dict(run.study.augment)
    for name in ("copies", "corruptions", "fit_epochs", "masked_lm", "vectors"):
        del settings[name]
    vectors = run.study.augment.vectors
    return fingerprint(
        stage_fingerprint(run, "teacher"),
        run.separate,
        settings,
        weights_fingerprint(_masked_lm(run)),
        vectors and file_fingerprint(Path(vectors)),
    )


def _check(run: Run, unit: Unit) -> None:
    """An hour's work shall not end with the lack of a file."""
    settings = run.study.augment
    if settings.masked_lm is not None:
        resolve_model(settings.masked_lm, "augment.masked_lm")
    if settings.vectors is not None and not Path(settings.vectors).is_file():
        raise ConfigError(f"augment.vectors: {settings.vectors} does not exist")


def _needs(run: Run, unit: Unit) -> Iterable[tuple[str, Unit]]:
    fitted = [] if run.study.augment.masked_lm is not None else ["masked_lm"]
    return [(name, {}) for name in ("teacher", "features", *fitted)]


def _replacements(run: Run) -> Replacements:
    model, tokenizer = load_masked_lm(_masked_lm(run))
    vectors = run.study.augment.vectors
    neighbours = embedding_neighbours(*run.load_teacher()) if vectors is None else read_vectors(Path(vectors))
    return Replacements(model, tokenizer, neighbours, run.study.augment.top_k)


def _make(run: Run, unit: Unit, folder: Path, tracker: Tracker) -> Result:
    settings, seed, train = run.study.augment, run.study.seed, run.data.splits["train"]
    parts = run.root / f".augment-{_fingerprint(run, unit)}-{settings.copies}"
    seconds = write_parts(parts, train, settings, seed, lambda: _replacements(run), tracker.progress)
    new = merge_parts(parts, train)
    new.write(folder / TEXTS, run.task.texts, run.task.label, json.dumps({"seed": seed, **to_dict(settings)}))
    start = time.perf_counter()
    label_rows(run, parts, new.rows.texts, new.rows.pairs, progress=tracker.progress)  # what is labelled there stays
    (parts / LABELLED).rename(folder / LABELLED)
    store = run.open_store(folder / LABELLED)
    save_copies(folder, new.copies)
    labels = np.asarray(train.labels)
    result = {
        "copies": settings.copies,
        **new.counts,
        "seconds": seconds,
        "rows_per_second": new.counts["tries"] / seconds,
        "label_seconds": time.perf_counter() - start,
        "disagreement": disagreement(store.logits, labels[new.origin], sets=run.task.multi_label),
        "disagreement_of_train": disagreement(run.train.logits[: len(train)], labels, sets=run.task.multi_label),
    }
    for old in run.root.glob(".augment-*"):
        shutil.rmtree(old)
    return result


def disagreement(logits: np.ndarray, labels: np.ndarray, *, sets: bool = False) -> float:
    """Share of rows whose label, or set of labels, is not the teacher's; for scores, the mean absolute difference."""
    if sets:
        return float(((logits > 0) != indicators(torch.from_numpy(labels), logits.shape[1]).numpy()).any(1).mean())
    if logits.shape[1] == 1:
        return float(np.abs(logits[:, 0].astype(np.float64) - labels).mean())
    return float((logits.argmax(1) != labels).mean())


def _describe(run: Run, result: Result) -> str:
    what, number = ("mean difference", "{:.3f}") if run.task.regression else ("disagreement", "{:.1%}")
    both = (number.format(result[name]) for name in ("disagreement", "disagreement_of_train"))
    return (
        f"{result['rows']} new rows of {result['tries']} tries ({result['unchanged_share']:.1%} unchanged, "
        f"{result['duplicate_share']:.1%} duplicates), {result['rows_per_second']:.0f} tries/s, then the teacher "
        f"{result['label_seconds']:.0f} s; "
        + "{} of the teacher and the labels {}, on train itself {}".format(what, *both)
        + f"; the texts are in {run.folder('augment') / TEXTS}"
    )


STAGE = Stage(
    name="augment",
    units=lambda run: [{}] if run.study.augment.copies else [],
    fingerprint=_fingerprint,
    make=_make,
    describe=_describe,
    needs=_needs,
    check=_check,
    fits=lambda run, result: result["copies"] >= run.study.augment.copies,
    missing="set augment.copies to the new rows per row that you want, e.g. 20",
)
