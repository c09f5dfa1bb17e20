"""Stage masked_lm: a masked language model fitted to the task's own text, where the augmentation names none."""

import time
from pathlib import Path

from nni_bertnas.artifacts import fingerprint
from nni_bertnas.data.models import resolve_model, weights_fingerprint
from nni_bertnas.data.task_data import data_fingerprint
from nni_bertnas.data.transfer import load_transfer, transfer_fingerprint
from nni_bertnas.stages.run import Result, Run, Unit
from nni_bertnas.stages.stage import Stage
from nni_bertnas.tracking.tracker import Tracker
from nni_bertnas.training.masked_lm import fit_masked_lm, plain_texts

# Times as many texts as train has: the task's own words are what matters, and a fit takes as long as texts are many.
_MOST = 2


def _units(run: Run) -> list[Unit]:
    settings = run.study.augment
    return [{}] if settings.copies and settings.masked_lm is None else []


def _fingerprint(run: Run, unit: Unit) -> str:
    study = run.study
    weights = weights_fingerprint(resolve_model(study.teacher.model))
    transfer = transfer_fingerprint(study.transfer, study.task)
    settings = study.augment.fit_epochs, _MOST
    return fingerprint(study.seed, data_fingerprint(study.task), transfer, weights, *settings)


def _make(run: Run, unit: Unit, folder: Path, tracker: Tracker) -> Result:
    start, study = time.perf_counter(), run.study
    train, dev = (plain_texts(run.data.splits[name]) for name in ("train", "dev"))
    most = _MOST * len(train)
    for rows in load_transfer(study.transfer, study.task, run.data.splits):
        train += plain_texts(rows)
        if len(train) >= most:
            train = train.take(range(most))
            break
    fitted = fit_masked_lm(
        study.teacher.model,
        train,
        dev,
        epochs=study.augment.fit_epochs,
        max_length=study.task.max_length,
        seed=study.seed,
        report=lambda metrics: tracker.epoch(metrics, "dev_accuracy"),
        progress=tracker.progress,
        trusted=study.teacher.trust_remote_code,
    )
    fitted.model.save_pretrained(folder)
    fitted.tokenizer.save_pretrained(folder)
    return {
        "dev_accuracy": fitted.dev_accuracy,
        "commonest_accuracy": fitted.commonest_accuracy,
        "seconds": time.perf_counter() - start,
    }


def _describe(run: Run, result: Result) -> str:
    return (
        f"{result['dev_accuracy']:.1%} of the masked pieces right on dev, always guessing the commonest piece "
        f"{result['commonest_accuracy']:.1%}"
    )


STAGE = Stage(
    name="masked_lm",
    units=_units,
    fingerprint=_fingerprint,
    make=_make,
    describe=_describe,
    missing="set augment.copies to the new rows per row that you want, and leave augment.masked_lm out",
)
