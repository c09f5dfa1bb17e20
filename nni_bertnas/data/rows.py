"""Rows of texts and labels, and how they come out of records: cleaned, their labels as numbers."""

import logging
import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from nni_bertnas.data.readers import Record
from nni_bertnas.errors import ConfigError

UNLABELLED = -100  # PyTorch's cross-entropy passes over it; an unlabelled score is not-a-number
_SURROGATE = re.compile(r"[\ud800-\udfff]")  # half a character, which JSON lets through and no tokenizer takes
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rows:
    """Texts with their labels, in one order.

    Attributes:
        texts: The first or only text of every row.
        labels: Class numbers, scores, or sets of labels, see :mod:`~nni_bertnas.data.label_sets`.
        pairs: The second texts; None for single texts.
    """

    texts: list[str]
    labels: list[float]
    pairs: list[str] | None = None

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, indices: Iterable[int]) -> "Rows":
        """The rows at `indices`, in that order."""
        indices = list(indices)
        pairs = None if self.pairs is None else [self.pairs[i] for i in indices]
        return Rows([self.texts[i] for i in indices], [self.labels[i] for i in indices], pairs)

    def chunks(self, size: int) -> Iterator["Rows"]:
        """The rows, so many at a time."""
        for first in range(0, len(self), size):
            yield self.take(range(first, min(len(self), first + size)))

    def __add__(self, other: "Rows") -> "Rows":
        assert (self.pairs is None) == (other.pairs is None), "single texts and pairs do not mix"
        pairs = None if self.pairs is None else self.pairs + (other.pairs or [])
        return Rows(self.texts + other.texts, self.labels + other.labels, pairs)


def unlabelled(count: int, *, regression: bool) -> list[float]:
    """The labels of rows that have none."""
    return [float("nan") if regression else UNLABELLED] * count


def clean_rows(
    records: Iterable[Record],
    texts: Sequence[str],
    label: str,
    *,
    skip: bool,
    empty_ok: bool = False,
    read: Callable[[Any], Any] | None = None,
) -> tuple[Rows, list[tuple[str, Any]]]:
    """Rows without their labels yet, and for every row where it stands and its label as text.

    With `skip`, damaged rows are left out and named in the log. `read` gives the label of a cell where it is no text,
    and None for what is none.
    """
    columns: tuple[list[str], ...] = tuple([] for _ in texts)
    values: list[tuple[str, Any]] = []
    damaged: list[str] = []
    for record in records:
        problem = record.problem
        if not problem:
            missing = [name for name in (*texts, *([label] if label else [])) if name not in record.values]
            if missing:
                raise ConfigError(
                    f"{record.where}: no column {', '.join(missing)}; there are {', '.join(map(str, record.values))}"
                )
            cells = [record.values[name] for name in texts]
            target = (read or label_text)(record.values[label]) if label else ""
            if empty_ok:
                cells = ["" if cell is None else cell for cell in cells]
            if not all(isinstance(cell, str) and (cell.strip() or empty_ok) for cell in cells):
                empty = [name for name, cell in zip(texts, cells, strict=True) if not str(cell or "").strip()]
                problem = f"{', '.join(empty)} is empty" if empty else f"{', '.join(texts)} must be text, got {cells}"
            elif label and target is None:
                wanted = "one text or number" if read is None else "a list of texts or numbers, or one text"
                problem = f"{label} must be {wanted}, got {type(record.values[label]).__name__}"
                if read is None and isinstance(record.values[label], list):
                    problem += " (of a row with several labels: set task.custom.kind: multi_label)"
            elif label and not target and read is None:
                problem = f"{label} is empty"
            elif any(map(_SURROGATE.search, cells)):
                problem = f"{', '.join(texts)} is not valid Unicode"
        if problem and not skip:
            raise ConfigError(
                f"{record.where}: {problem}; mend the row, or leave such rows out with task.bad_rows: skip"
            )
        if problem:
            damaged.append(f"{record.where}: {problem}")
            continue
        values.append((record.where, target or ("" if read is None else [])))
        for column, cell in zip(columns, cells, strict=True):
            column.append(cell.strip())
    if damaged:
        _log.warning("%d damaged row(s) left out, the first: %s", len(damaged), "; ".join(damaged[:5]))
    pairs = columns[1] if len(columns) == 2 else None
    return Rows(columns[0], [UNLABELLED] * len(columns[0]), pairs), values


def unlabelled_rows(records: Iterable[Record], texts: Sequence[str], *, empty_ok: bool) -> Rows:
    """The texts of some records, whatever labels they may have.

    Raises:
        ConfigError: With file and line of the first bad row; an empty text is one unless `empty_ok`.
    """
    return clean_rows(records, texts, "", skip=False, empty_ok=empty_ok)[0]


def label_text(value: Any) -> str | None:
    """A label as text: 1, 1.0 and "1" are the same, and so are the spellings of Unicode. None for what is no label."""
    if value is None or value != value:
        return ""
    if not isinstance(value, str | int | float):
        return None
    text = unicodedata.normalize("NFC", str(value)).strip()
    number = re.fullmatch(r"([+-]?\d+)\.0*", text)
    return number[1] if number else text


def label_order(labels: Iterable[str]) -> tuple[str, ...]:
    """Label names found in data, in the order of their numbers: by value if all are numbers, else by alphabet."""
    names = sorted(set(labels))
    try:
        values = {name: float(name) for name in names}
    except ValueError:
        return tuple(names)
    return tuple(sorted(names, key=lambda name: values[name]) if all(map(math.isfinite, values.values())) else names)


def plain_label(name: str) -> str:
    """A label's name without what differs between spellings: case, and spaces, hyphens or underscores."""
    return unicodedata.normalize("NFC", name).lower().replace("-", "_").replace(" ", "_")


def class_numbers(
    values: Sequence[tuple[str, str]], names: Sequence[str], split: str, *, own: bool, skip: bool = False
) -> list[float | None]:
    """Labels as class numbers; None for those that are none of the names, with `skip`.

    Args:
        values: Of every row where it stands, and its label.
        names: Of the labels, in the order of their numbers.
        split: For messages.
        own: Whether the data are the user's; the files of our own tasks carry names or numbers.
        skip: Whether damaged rows are left out.

    Raises:
        ConfigError: A label is none of the names.
    """
    by_name = {plain_label(name): number for number, name in enumerate(names)}
    if not own:
        by_name |= {str(number): number for number in range(len(names))}
    found: list[float | None] = []
    for where, text in values:
        number = by_name.get(plain_label(text))
        if number is None and not skip:
            hint = "; mend it, name all labels in task.custom.labels, or set task.bad_rows: skip" if own else ""
            raise ConfigError(f"{where}: the label {text!r} in {split} is none of {', '.join(names)}{hint}")
        found.append(number)
    return found


def score_numbers(values: Sequence[tuple[str, str]], column: str, *, skip: bool = False) -> list[float | None]:
    """Labels as scores; see :func:`class_numbers`.

    Raises:
        ConfigError: One is no finite number.
    """
    found: list[float | None] = []
    for where, text in values:
        try:
            score = float(text)
        except ValueError:
            score = math.nan
        finite = math.isfinite(score)
        if not finite and not skip:
            raise ConfigError(f"{where}: {column} must be a number, got {text!r}; mend it, or set task.bad_rows: skip")
        found.append(score if finite else None)
    return found
