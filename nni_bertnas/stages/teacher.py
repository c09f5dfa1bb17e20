"""Stage teacher: found, fine-tuned once where it needs it, saved with its tokenizer."""

import time
from functools import partial
from pathlib import Path
from typing import Any

from nni_bertnas.artifacts import fingerprint
from nni_bertnas.config import to_dict
from nni_bertnas.data.metrics import title
from nni_bertnas.data.models import resolve_model, weights_fingerprint
from nni_bertnas.data.task_data import data_fingerprint
from nni_bertnas.data.tasks import task_note
from nni_bertnas.stages.run import Result, Run, Unit
from nni_bertnas.stages.stage import Stage
from nni_bertnas.student.fit import check_teacher
from nni_bertnas.student.start import Start
from nni_bertnas.tracking.tracker import Tracker
from nni_bertnas.training.teacher import make_teacher


def _fingerprint(run: Run, unit: Unit) -> str:
    """Of data, source weights, settings; not of where it is cut, nor of who may run code."""
    settings = to_dict(run.study.teacher)
    for name in ("num_blocks", "boundaries", "kind", "trust_remote_code"):
        del settings[name]
    weights = weights_fingerprint(resolve_model(run.study.teacher.model))
    return fingerprint(run.study.seed, data_fingerprint(run.study.task), weights, settings)


def _make(run: Run, unit: Unit, folder: Path, tracker: Tracker) -> Result:
    start, study = time.perf_counter(), run.study

    def check(model: Any, tokenizer: Any) -> None:
        note = task_note(study.task)
        check_teacher(run.shape, Start(teacher=model, spec=run.task, note=note, sep_token_id=tokenizer.sep_token_id))

    report = partial(tracker.epoch, default="train_loss")
    teacher = make_teacher(study.teacher, study.task, run.data, study.seed, report, check, progress=tracker.progress)
    teacher.model.save_pretrained(folder)
    teacher.tokenizer.save_pretrained(folder)
    return {
        "fine_tuned": teacher.fine_tuned,
        "num_layers": teacher.model.config.num_hidden_layers,
        **teacher.scores,
        "seconds": time.perf_counter() - start,
    }


def _describe(run: Run, result: Result) -> str:
    splits = [name for name, value in result.items() if isinstance(value, dict)]
    scores = [
        f"{split} {title(name, run.data.label_names)} {result[split][name] * 100:.2f}"
        for split in splits
        for name in run.task.metrics
    ]
    return f"in percent: {', '.join(scores)}"


STAGE = Stage(
    name="teacher",
    units=lambda run: [{}],
    fingerprint=_fingerprint,
    make=_make,
    describe=_describe,
)
