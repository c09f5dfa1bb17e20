"""A saved teacher or student at work: predictions for a file of rows, and the zip that the GLUE server takes."""

import os
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from nni_bertnas.data.batches import LengthBatches, tokenize
from nni_bertnas.data.readers import READERS, Record, read_records
from nni_bertnas.data.sources import Rows, plain_label, unlabelled_rows
from nni_bertnas.data.tasks import TASKS, GlueFiles
from nni_bertnas.errors import ConfigError
from nni_bertnas.training.metrics import model_inputs
from nni_bertnas.training.trainer import best_device

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_BATCH_SIZE = 64
GLUE_FILES = tuple(sorted(name for spec in TASKS.values() if spec.glue for name in spec.glue.test))


@dataclass(frozen=True)
class Predictor:
    """A classifier or regressor with what it says of its task.

    Attributes:
        model: In eval mode.
        tokenizer: Its own.
        task: Name of the task; empty where the model does not say.
        texts: Columns of the texts it was trained on; empty likewise.
        max_length: Word pieces that a text is cut to.
    """

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    task: str
    texts: tuple[str, ...]
    max_length: int

    @property
    def label_names(self) -> list[str]:
        """In the order of the outputs; one for a score."""
        return [str(self.model.config.id2label[number]) for number in range(self.model.config.num_labels)]

    @torch.inference_mode()
    def probabilities(self, rows: Rows) -> np.ndarray:
        """`(num_rows, num_labels)`, each row summing to 1; `(num_rows, 1)` scores for regression."""
        data = tokenize(self.tokenizer, rows, self.max_length)
        found = np.zeros((len(rows), self.model.config.num_labels))
        for numbers in LengthBatches(data.lengths, _BATCH_SIZE, shuffle=False):
            logits = self.model(**model_inputs(self.model, data.__getitems__(numbers))).logits.double().cpu()
            found[numbers] = (logits.softmax(-1) if logits.shape[1] > 1 else logits).numpy()
        return found


def load_predictor(folder: Path) -> Predictor:
    """Open a saved teacher, student, or any Hugging Face classifier.

    Raises:
        ConfigError: The folder holds none.
    """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    import search_space.student  # noqa: F401  makes Hugging Face's auto classes know the student

    if not (folder / "config.json").is_file():
        raise ConfigError(f"{folder} holds no model; give its folder, e.g. runs/demo/supernet/seed0/student")
    try:
        model = AutoModelForSequenceClassification.from_pretrained(folder).eval().to(best_device())
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder} cannot be loaded: {str(error).splitlines()[0]}") from error
    note = getattr(model.config, "bertnas_task", None) or {}
    longest = min(tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", 512))
    return Predictor(
        model, tokenizer, note.get("name", ""), tuple(note.get("texts", ())), note.get("max_length", longest)
    )


def predict_file(
    predictor: Predictor, source: Path, target: Path, *, columns: Sequence[str] | None, literal_quotes: bool
) -> dict[str, int]:
    """Predict every row of a file and write it with `prediction` and one `probability_<label>` per label beside.

    Args:
        predictor: The model.
        source: .csv, .tsv, .jsonl or .parquet.
        target: Likewise; written whole or not at all.
        columns: Of the text or of both texts; None takes those the model was trained on.
        literal_quotes: Of .csv and .tsv: a quote is a character like any other.

    Returns:
        How many rows have each label; all rows as `score` for regression.

    Raises:
        ConfigError: A column is missing, a row cannot be read or a text is empty; the message names the line.
    """
    import pandas as pd

    if target.suffix.lower() not in READERS:
        raise ConfigError(f"--output: {target} must end in one of {', '.join(READERS)}")
    texts = tuple(columns or predictor.texts)
    if not texts:
        raise ConfigError("--columns: the model does not say which columns it reads; name one, or two for pairs")
    records = _read(source, literal_quotes=literal_quotes)
    found = predictor.probabilities(unlabelled_rows(records, texts, empty_ok=False))
    new = {"prediction": _predictions(predictor, found)}
    if found.shape[1] > 1:
        new |= {f"probability_{name}": found[:, number] for number, name in enumerate(predictor.label_names)}
    frame = pd.DataFrame([record.values for record in records])
    if taken := [name for name in new if name in frame]:
        raise ConfigError(f"{source}: has a column {', '.join(taken)} already; rename it, so that nothing is lost")
    frame = frame.assign(**new)
    fresh = target.with_name(f".{target.name}")
    {
        ".csv": lambda: frame.to_csv(fresh, index=False),
        ".tsv": lambda: frame.to_csv(fresh, index=False, sep="\t"),
        ".jsonl": lambda: frame.to_json(fresh, orient="records", lines=True, force_ascii=False),
        ".parquet": lambda: frame.to_parquet(fresh, index=False),
    }[target.suffix.lower()]()
    os.replace(fresh, target)
    if found.shape[1] == 1:
        return {"score": len(records)}
    return {str(name): int(count) for name, count in frame["prediction"].value_counts().items()}


def _read(path: Path, *, literal_quotes: bool) -> list[Record]:
    records = list(read_records(path, literal_quotes=literal_quotes))
    if not records:
        raise ConfigError(f"{path} has no rows")
    return records


def _predictions(predictor: Predictor, found: np.ndarray) -> list[Any]:
    if found.shape[1] == 1:
        return found[:, 0].tolist()
    return [predictor.label_names[number] for number in found.argmax(1)]


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
    records = _read(path, literal_quotes=True)
    # The server wants every row, and QQP has questions without text.
    found = predictor.probabilities(unlabelled_rows(records, glue.test_texts or glue.texts, empty_ok=True))
    predictions: Iterable[Any] = _predictions(predictor, found)
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
