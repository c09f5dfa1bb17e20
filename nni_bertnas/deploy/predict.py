"""A saved teacher or student at work: predictions for a file of rows."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from nni_bertnas.data.batches import model_inputs
from nni_bertnas.data.models import load_classifier
from nni_bertnas.data.readers import Record, read_records
from nni_bertnas.data.rows import Rows, unlabelled
from nni_bertnas.data.samplers import LengthBatches
from nni_bertnas.data.texts import read_rows
from nni_bertnas.data.tokens import tokenize
from nni_bertnas.deploy.copies import check_target, column_names, write_copy
from nni_bertnas.errors import ConfigError
from nni_bertnas.machine import best_device
from nni_bertnas.runtime.manifest import Kind
from nni_bertnas.student.start import places

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
        """`(num_rows, num_labels)`, each row summing to 1; `(num_rows, 1)` scores for regression.

        Of a model that gives any number of labels to a row, each label's own probability.
        """
        data = tokenize(self.tokenizer, rows, self.max_length)
        found = np.zeros((len(rows), self.model.config.num_labels))
        for numbers in LengthBatches(data.lengths, _BATCH_SIZE, shuffle=False):
            logits = self.model(**model_inputs(self.model, data.batch(numbers))).logits.double().cpu()
            if self.several:
                logits = logits.sigmoid()
            found[numbers] = (logits.softmax(-1) if logits.shape[1] > 1 and not self.several else logits).numpy()
        return found

    def predict(self, texts: Sequence[str] | Sequence[tuple[str, str]]) -> list[Any]:
        """Label names, lists of them, or scores: `(num_texts,)`.

        Args:
            texts: Texts; of a model of pairs, pairs of texts.

        Raises:
            ConfigError: They are of the other kind.
        """
        if isinstance(texts, str):
            raise ConfigError("texts: give a list of texts, such as [text]")
        pairs = len(self.texts) == 2
        wrong = [one for one in texts if isinstance(one, str) == pairs or not (isinstance(one, str) or len(one) == 2)]
        if self.texts and wrong:
            wanted = "pairs of texts" if pairs else "single texts"
            raise ConfigError(f"texts: the model reads {wanted} ({', '.join(self.texts)}), got {wrong[0]!r}")
        single = [one if isinstance(one, str) else one[0] for one in texts]
        second = None if not texts or isinstance(texts[0], str) else [one[1] for one in texts]
        rows = Rows(single, unlabelled(len(single), regression=False), second)
        return self.predictions(self.probabilities(rows)) if single else []

    @property
    def kind(self) -> Kind:
        """What a row gets: one class, any number of labels, or a score."""
        return kind_of(self.model.config)

    @property
    def several(self) -> bool:
        """Whether a row can have any number of labels."""
        return self.kind == "labels"

    def predictions(self, probabilities: np.ndarray) -> list[Any]:
        """Label names, lists of them, or scores, `(num_rows,)`, of what :meth:`probabilities` gave."""
        if self.several:
            names = self.label_names
            return [[name for name, one in zip(names, row, strict=True) if one > 0.5] for row in probabilities]
        if probabilities.shape[1] == 1:
            return probabilities[:, 0].tolist()
        return [self.label_names[number] for number in probabilities.argmax(1)]


def kind_of(config: Any) -> Kind:
    """What a classifier of transformers gives to a row, by its configuration."""
    if config.problem_type == "multi_label_classification":
        return "labels"
    return "score" if config.num_labels == 1 else "class"


def cut_length(model: Any, tokenizer: Any) -> int:
    """Word pieces that a classifier's rows are cut to."""
    note = getattr(model.config, "bertnas_task", None) or {}
    return int(note.get("max_length", min(tokenizer.model_max_length, places(model))))


def load_predictor(folder: Path) -> Predictor:
    """Open a saved teacher, student, or any Hugging Face classifier.

    Raises:
        ConfigError: The folder holds none.
    """
    model, tokenizer = load_classifier(folder)
    model.to(best_device())
    note = getattr(model.config, "bertnas_task", None) or {}
    return Predictor(model, tokenizer, note.get("name", ""), tuple(note.get("texts", ())), cut_length(model, tokenizer))


def predict_file(
    predictor: Predictor, source: Path, target: Path, *, columns: Sequence[str] | None, literal_quotes: bool
) -> dict[str, int]:
    """Predict every row of a file and write it with `prediction` and one `probability_<label>` per label beside.

    The file is read in pieces, twice, and may be larger than memory.

    Args:
        predictor: The model.
        source: .csv, .tsv, .jsonl or .parquet.
        target: Likewise; written whole or not at all.
        columns: Of the text or of both texts; None takes those the model was trained on.
        literal_quotes: Of .csv and .tsv: a quote is a character like any other.

    Returns:
        How many rows have each label; all rows as `score` for regression.

    Raises:
        ConfigError: The target cannot be written, a column is missing, a row cannot be read or a text is empty; the
            message names the line.
    """
    check_target(source, target)
    texts = tuple(columns or predictor.texts)
    if not texts:
        raise ConfigError("--columns: the model does not say which columns it reads; name one, or two for pairs")
    parts: list[np.ndarray] = []
    for rows in read_rows(read_records(source, literal_quotes=literal_quotes), texts):
        if not parts:  # before any work is done
            _check_columns(source, predictor, literal_quotes)
        parts.append(predictor.probabilities(rows).astype(np.float32))
    if not parts:
        raise ConfigError(f"{source} has no rows; give a file with some")
    found = np.concatenate(parts)
    said = predictor.predictions(found)
    names = predictor.label_names if found.shape[1] > 1 or predictor.several else []
    new = (
        {"prediction": one, **{f"probability_{name}": value for name, value in zip(names, row, strict=False)}}
        for one, row in zip(said, found.astype(float).tolist(), strict=True)
    )
    write_copy(source, target, new, literal_quotes=literal_quotes)
    if predictor.several:
        return dict(Counter(name for row in said for name in row).most_common())
    return dict(Counter(said).most_common()) if names else {"score": len(found)}


def _check_columns(source: Path, predictor: Predictor, literal_quotes: bool) -> None:
    new = {"prediction", *(f"probability_{name}" for name in predictor.label_names)}
    if taken := [name for name in column_names(source, literal_quotes=literal_quotes) if name in new]:
        raise ConfigError(f"{source}: has a column {', '.join(taken)} already; rename it, so that nothing is lost")


def read_all(path: Path, *, literal_quotes: bool) -> list[Record]:
    """All rows of a file.

    Raises:
        ConfigError: There are none, or the file cannot be read.
    """
    records = list(read_records(path, literal_quotes=literal_quotes))
    if not records:
        raise ConfigError(f"{path} has no rows; give a file with some")
    return records
