"""An exported model: texts or pairs in, labels and probabilities out."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .engines import ENGINES, open_engine
from .errors import ConfigError
from .manifest import TOKENIZER, read_manifest

Texts = str | Sequence[str]
Prediction = dict[str, Any]


class Classifier:
    """A classifier or regressor in an exported folder.

    Args:
        folder: What `bertnas export --to onnx` wrote, or another format with a `bertnas.json`.
        threads: Of every pass.
        batch_size: Rows of a pass, at most.

    Raises:
        ConfigError: The folder holds no such model, or a package that it needs is not installed.
    """

    def __init__(self, folder: str | Path, *, threads: int = 1, batch_size: int = 32) -> None:
        self.folder, self.batch_size = Path(folder), batch_size
        self.manifest = read_manifest(self.folder)
        path = self.folder / Path(self.manifest.model).name  # a name of this folder alone
        if path.suffix not in ENGINES:
            raise ConfigError(f"{path} is of no known kind; it must end in one of {', '.join(ENGINES)}")
        self._tokenizer = _open_tokenizer(self.folder / TOKENIZER, self.manifest.max_length)
        self._engine = open_engine(path, threads)

    @property
    def labels(self) -> list[str]:
        """In the order of the outputs; one of a score."""
        return self.manifest.labels

    @property
    def pairs(self) -> bool:
        """Whether it was trained on pairs of texts."""
        return len(self.manifest.texts) == 2

    def probabilities(self, texts: Texts, pairs: Texts | None = None) -> np.ndarray:
        """What the model gives to every row.

        Args:
            texts: The first or only text of every row; a single one is one row.
            pairs: The second texts.

        Returns:
            `(num_rows, num_labels)`, each row summing to 1, or every label's own probability; `(num_rows, 1)` scores.

        Raises:
            ValueError: A text is none or empty, or as many second texts are not given as first ones.
        """
        encoded = self._encode(texts, pairs)
        found = np.zeros((len(encoded), len(self.labels)))
        for numbers in self._order(encoded):
            logits = self._engine(self._batch([encoded[number] for number in numbers]))
            found[numbers] = self._shares(logits.astype(np.float64))
        return found

    def batches(self, texts: Texts, pairs: Texts | None = None) -> Iterator[dict[str, np.ndarray]]:
        """What the model reads of some rows, by the name of its inputs, each `(batch, seq)`, the shortest first."""
        encoded = self._encode(texts, pairs)
        return (self._batch([encoded[number] for number in numbers]) for numbers in self._order(encoded))

    def one_pass(self, batch: int, length: int, pairs: bool = False) -> Callable[[], np.ndarray]:
        """A pass of the model alone, of rows made beforehand, to measure it by.

        Args:
            batch: Rows.
            length: Word pieces of each.
            pairs: Whether the second half of each is a second text.
        """
        inputs = {name: np.full((batch, length), 5 if name == "input_ids" else 1) for name in self.manifest.inputs}
        if "token_type_ids" in inputs:
            inputs["token_type_ids"][:, : length // 2 if pairs else length] = 0
        return lambda: self._engine(inputs)

    def check(self, texts: Texts, pairs: Texts | None = None) -> tuple[list[str], list[str] | None]:
        """The rows as the tokenizer takes them.

        Raises:
            ValueError: See :meth:`probabilities`.
        """
        first, second = _rows(texts, "texts"), None if pairs is None else _rows(pairs, "pairs")
        columns = self.manifest.texts
        if columns and (second is not None) != self.pairs:
            raise ValueError(
                f"the model reads {'pairs of texts' if self.pairs else 'single texts'}: {', '.join(columns)}"
            )
        if second is not None and len(second) != len(first):
            raise ValueError(f"pairs must be as many as texts, {len(first)}, got {len(second)}")
        return first, second

    def _encode(self, texts: Texts, pairs: Texts | None) -> Sequence[Any]:
        first, second = self.check(texts, pairs)
        rows = first if second is None else list(zip(first, second, strict=True))
        encoded: Sequence[Any] = self._tokenizer.encode_batch(rows)
        return encoded

    def _order(self, encoded: Sequence[Any]) -> Iterator[list[int]]:
        order = sorted(range(len(encoded)), key=lambda number: len(encoded[number].ids))
        return (order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size))

    def predict(self, texts: Texts, pairs: Texts | None = None) -> list[Any]:
        """Of every row its label, list of labels, or score; see :meth:`probabilities`."""
        return [self._answer(row) for row in self.probabilities(texts, pairs)]

    def __call__(self, texts: Texts, pairs: Texts | None = None) -> list[Prediction]:
        """Of every row `label` and `probabilities`, or `labels` and `probabilities`, or `score`."""
        return [self.describe(row) for row in self.probabilities(texts, pairs)]

    def describe(self, row: np.ndarray) -> Prediction:
        """One row of :meth:`probabilities` in words."""
        if self.manifest.kind == "score":
            return {"score": float(row[0])}
        name = "label" if self.manifest.kind == "class" else "labels"
        return {name: self._answer(row), "probabilities": dict(zip(self.labels, map(float, row), strict=True))}

    def _answer(self, row: np.ndarray) -> Any:
        if self.manifest.kind == "score":
            return float(row[0])
        if self.manifest.kind == "labels":
            return [name for name, one in zip(self.labels, row, strict=True) if one > 0.5]
        return self.labels[int(row.argmax())]

    def _batch(self, rows: Sequence[Any]) -> dict[str, np.ndarray]:
        longest = max(len(row.ids) for row in rows)
        values = {"input_ids": self.manifest.pad_id, "attention_mask": 0, "token_type_ids": 0}
        found = {name: np.full((len(rows), longest), values[name], np.int64) for name in self.manifest.inputs}
        for number, row in enumerate(rows):
            parts = {"input_ids": row.ids, "attention_mask": row.attention_mask, "token_type_ids": row.type_ids}
            for name, array in found.items():
                array[number, : len(row.ids)] = parts[name]
        return found

    def _shares(self, logits: np.ndarray) -> np.ndarray:
        if self.manifest.kind == "score":
            return logits
        if self.manifest.kind == "labels":
            return 0.5 * (1 + np.tanh(logits / 2))  # the sigmoid, which cannot overflow so
        shares = np.exp(logits - logits.max(1, keepdims=True))
        return np.asarray(shares / shares.sum(1, keepdims=True))


def _open_tokenizer(path: Path, max_length: int) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise ConfigError(f"needs {error.name}; install it with: pip install 'nni-bertnas[runtime]'") from error
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # a plain Exception is what it raises
        raise ConfigError(f"{path} cannot be read ({error}); export the model once more") from error
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length, strategy="longest_first")
    return tokenizer


def _rows(texts: Texts, name: str) -> list[str]:
    rows = [texts] if isinstance(texts, str) else list(texts)
    for number, text in enumerate(rows):
        if not isinstance(text, str):
            raise ValueError(f"{name}[{number}] must be a text, got {type(text).__name__}")
        if not text.strip():
            raise ValueError(f"{name}[{number}] is empty")
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise ValueError(f"{name}[{number}] is not valid Unicode")
    return [text.strip() for text in rows]  # as in training
