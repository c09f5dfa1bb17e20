"""A saved teacher or student at work: predictions for a file of rows."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from nni_bertnas.data.batches import LengthBatches, model_inputs
from nni_bertnas.data.models import load_classifier
from nni_bertnas.data.readers import READERS, Record, read_records
from nni_bertnas.data.rows import Rows, unlabelled_rows
from nni_bertnas.data.tokens import tokenize
from nni_bertnas.errors import ConfigError
from nni_bertnas.machine import best_device

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_BATCH_SIZE = 64


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
            logits = self.model(**model_inputs(self.model, data.batch(numbers))).logits.double().cpu()
            found[numbers] = (logits.softmax(-1) if logits.shape[1] > 1 else logits).numpy()
        return found

    def predictions(self, probabilities: np.ndarray) -> list[Any]:
        """Label names, or scores, `(num_rows,)`, of what :meth:`probabilities` gave."""
        if probabilities.shape[1] == 1:
            return probabilities[:, 0].tolist()
        return [self.label_names[number] for number in probabilities.argmax(1)]


def load_predictor(folder: Path) -> Predictor:
    """Open a saved teacher, student, or any Hugging Face classifier.

    Raises:
        ConfigError: The folder holds none.
    """
    model, tokenizer = load_classifier(folder)
    model.to(best_device())
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
    if target.suffix.lower() not in READERS:
        raise ConfigError(f"--output: {target} must end in one of {', '.join(READERS)}")
    texts = tuple(columns or predictor.texts)
    if not texts:
        raise ConfigError("--columns: the model does not say which columns it reads; name one, or two for pairs")
    records = read_all(source, literal_quotes=literal_quotes)
    found = predictor.probabilities(unlabelled_rows(records, texts, empty_ok=False))
    new: dict[str, Any] = {"prediction": predictor.predictions(found)}
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


def read_all(path: Path, *, literal_quotes: bool) -> list[Record]:
    """All rows of a file.

    Raises:
        ConfigError: There are none, or the file cannot be read.
    """
    records = list(read_records(path, literal_quotes=literal_quotes))
    if not records:
        raise ConfigError(f"{path} has no rows")
    return records
