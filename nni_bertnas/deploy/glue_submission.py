"""The zip that the GLUE server takes."""

import os
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from nni_bertnas.data.readers import Record
from nni_bertnas.data.rows import plain_label, unlabelled_rows
from nni_bertnas.data.tasks import TASKS, GlueFiles
from nni_bertnas.deploy.predict import Predictor, read_all
from nni_bertnas.errors import ConfigError

GLUE_FILES = tuple(sorted(name for spec in TASKS.values() if spec.glue for name in spec.glue.test))


def write_submission(predictor: Predictor, source: Path, target: Path) -> dict[str, int]:
    """Predict a GLUE task's test rows and put them into the zip that the GLUE server takes.

    What the zip has of other tasks stays in it. A model of MNLI also predicts the diagnostic set where it lies beside.

    Args:
        predictor: A model that was trained on a GLUE task.
        source: The GLUE folder.
        target: The zip, made or added to.

    Returns:
        Rows of every file written, e.g. `RTE.tsv`.

    Raises:
        ConfigError: The model is of no GLUE task, or a test file is missing or damaged.
    """
    spec = TASKS.get(predictor.task)
    if spec is None or spec.glue is None:
        raise ConfigError(
            f"--glue-submission: the model's task is {predictor.task or 'unknown'}, not one of GLUE's; "
            "train one from experiment_configs/studies/glue"
        )
    jobs = [(spec.glue, name) for name in spec.glue.test]
    diagnostic = TASKS["ax"].glue
    if predictor.task == "mnli" and diagnostic and (source / diagnostic.folder / diagnostic.test["AX"]).is_file():
        jobs.append((diagnostic, "AX"))
    files = {f"{name}.tsv": _submission(predictor, glue, source / glue.folder / glue.test[name]) for glue, name in jobs}
    kept: dict[str, str] = {}
    if target.exists():
        try:
            with zipfile.ZipFile(target) as archive:
                kept = {name: archive.read(name).decode() for name in archive.namelist()}
        except zipfile.BadZipFile:
            raise ConfigError(f"--glue-submission: {target} is no zip; remove it or name another") from None
    fresh = target.with_name(f".{target.name}")
    with zipfile.ZipFile(fresh, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in sorted({**kept, **files}.items()):
            archive.writestr(name, text)
    os.replace(fresh, target)
    return {name: text.count("\n") - 1 for name, text in files.items()}


def _submission(predictor: Predictor, glue: GlueFiles, path: Path) -> str:
    """One file of a submission: a header, then the index and prediction of every test row, in the test file's order."""
    records = read_all(path, literal_quotes=True)
    # The server wants every row, and QQP has questions without text.
    found = predictor.probabilities(unlabelled_rows(records, glue.test_texts or glue.texts, empty_ok=True))
    predictions: Iterable[Any] = predictor.predictions(found)
    if found.shape[1] == 1:
        predictions = [f"{min(5.0, max(0.0, score)):.3f}" for score in predictions]
    elif not glue.submit_names:
        names = [plain_label(name) for name in TASKS[predictor.task].label_names]
        predictions = [names.index(plain_label(name)) for name in predictions]
    lines = [
        f"{_index(record, row)}\t{one}" for row, (record, one) in enumerate(zip(records, predictions, strict=True))
    ]
    return "\n".join(["index\tprediction", *lines, ""])


def _index(record: Record, row: int) -> Any:
    return record.values.get("index", record.values.get("id", row))


def missing_of_submission(target: Path) -> list[str]:
    """Files that the GLUE server wants and the zip has not yet."""
    with zipfile.ZipFile(target) as archive:
        return [f"{name}.tsv" for name in GLUE_FILES if f"{name}.tsv" not in archive.namelist()]
