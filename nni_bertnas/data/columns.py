"""What the columns of a file of rows look like, and which of them are the texts and the label."""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nni_bertnas.data.label_sets import MOST, read_set
from nni_bertnas.data.readers import read_records
from nni_bertnas.data.rows import label_text
from nni_bertnas.errors import ConfigError

SEPARATORS = (",", ";", "|")
_COUNTED = 50_000  # different values that are told apart
_FEW_VALUES = 20  # a column of more different whole numbers is one of scores
_FEW_DECIMALS = 5
_MOST_LABELS, _ROWS_PER_LABEL = 200, 5
_LABEL_WORDS = 3.0  # of one label, on average
_MARKS = {"0", "1", "true", "false"}
_LABELS = (
    "label", "labels", "class", "category", "target", "intent", "topic", "sentiment", "emotion", "tag", "tags", "score",
    "rating", "stars", "y",
)  # fmt: skip
_SIDES = (("1", "2"), ("_a", "_b"), ("premise", "hypothesis"), ("question", "answer"), ("query", "passage"))
Kind = Literal["classification", "regression", "multi_label"]


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column.

    Attributes:
        name: Of the column.
        kind: `text`, `whole` numbers, other numbers (`number`), `marks` (0 and 1) or `list`.
        filled: Rows that have a value.
        words: Of a value, on average.
        counts: Of the values, as labels are written; of very many the first alone.
        separator: Between several labels in a value, where it looks like that.
    """

    name: str
    kind: Literal["text", "whole", "number", "marks", "list"]
    filled: int
    words: float
    counts: Mapping[str, int]
    separator: str | None = None


@dataclass(frozen=True, kw_only=True)
class Table:
    """A file of rows.

    Attributes:
        rows: That can be read.
        damaged: Where the others stand, and what is wrong.
        columns: By name.
    """

    rows: int
    damaged: Sequence[str]
    columns: Mapping[str, Column]

    def check(self, names: Sequence[str], flag: str) -> None:
        """Whether there are such columns.

        Raises:
            ConfigError: There are not; names the flag.
        """
        if missing := [name for name in names if name not in self.columns]:
            raise ConfigError(f"{flag}: there is no column {', '.join(missing)}; there are {', '.join(self.columns)}")


@dataclass(frozen=True, kw_only=True)
class Guess:
    """Which columns are what.

    Attributes:
        texts: One, or two of a pair.
        labels: One, or of `multi_label` one per label.
        kind: Of the task.
        separator: Between the labels of a row, where they stand in one text.
        reasons: What was guessed, and why; a sentence each.
    """

    texts: tuple[str, ...]
    labels: tuple[str, ...]
    kind: Kind
    separator: str | None
    reasons: tuple[str, ...]


def look(path: Path, *, literal_quotes: bool = False) -> Table:
    """Read a file and look at its columns.

    Args:
        path: .csv, .tsv, .jsonl or .parquet.
        literal_quotes: See :func:`~nni_bertnas.data.readers.read_records`.

    Raises:
        ConfigError: It cannot be read, or has no rows.
    """
    values: dict[str, list[Any]] = {}
    damaged, rows = [], 0
    for record in read_records(path, literal_quotes=literal_quotes):
        if record.problem:
            damaged.append(f"{record.where}: {record.problem}")
            continue
        rows += 1
        for name, value in record.values.items():
            values.setdefault(name, []).append(value)
    if not rows:
        raise ConfigError(f"{path} has no rows that can be read" + "".join(f"; {one}" for one in damaged[:1]))
    return Table(rows=rows, damaged=damaged, columns={name: _column(name, own) for name, own in values.items()})


def _column(name: str, values: Sequence[Any]) -> Column:
    if any(isinstance(value, list | tuple) for value in values):
        sets = [read_set(value, ",") or [] for value in values]
        counts = Counter(label for one in sets for label in one)
        return Column(name=name, kind="list", filled=sum(map(bool, sets)), words=0.0, counts=counts)
    texts = [text for value in values if (text := label_text(value))]  # None is of what is neither text nor number
    counts = Counter(itertools.islice(dict.fromkeys(texts), _COUNTED))
    counts = Counter(text for text in texts if text in counts)
    words = sum(len(text.split()) for text in texts) / max(1, len(texts))
    kind: Literal["text", "whole", "number", "marks"] = "text"
    numbers = [_number(text) for text in counts]
    if counts and None not in numbers:
        kind = "whole" if all(number == int(number) for number in numbers if number is not None) else "number"
    if counts and {text.lower() for text in counts} <= _MARKS:
        kind = "marks"
    separator = _separator(texts) if kind == "text" else None
    return Column(name=name, kind=kind, filled=len(texts), words=words, counts=counts, separator=separator)


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if abs(number) < float("inf") else None


def _separator(texts: Sequence[str]) -> str | None:
    """What stands between labels, where a column has sets of a few short ones that come again in other sets."""
    for separator in SEPARATORS:
        if sum(separator in text for text in texts) < len(texts) / 20:
            continue
        parts = [part.strip() for text in texts for part in text.split(separator) if part.strip()]
        names = Counter(parts)
        short = sum(len(part.split()) for part in parts) / max(1, len(parts)) <= _LABEL_WORDS
        mixed = sum(len(text.split(separator)) for text in {*texts}) > len(names)  # some come again in another set
        if short and mixed and len(names) <= MOST and len(names) * _ROWS_PER_LABEL <= len(parts):
            return separator
    return None


def guess(table: Table, texts: Sequence[str] = (), labels: Sequence[str] = (), kind: Kind | None = None) -> Guess:
    """Which columns are the texts and the label, and what kind of label it is.

    Args:
        table: The file.
        texts: Columns that are known; none: the longest text, or two of a pair.
        labels: Likewise.
        kind: Likewise; None: by the values.

    Raises:
        ConfigError: There are no such columns, or none that looks right; names the flag.
    """
    table.check(texts, "--text")
    table.check(labels, "--label")
    if both := set(texts) & set(labels):
        raise ConfigError(f"--label: {', '.join(both)} is a text already; there are {', '.join(table.columns)}")
    if len(texts) > 2:
        raise ConfigError(f"--text: names one column, or two of a pair, got {', '.join(texts)}")
    reasons: list[str] = []
    found = tuple(texts) or _texts(table, labels, reasons)
    own = tuple(labels) or _labels(table, found, reasons)
    if len(own) > 1:
        if wrong := [name for name in own if table.columns[name].kind != "marks"]:
            raise ConfigError(f"--label: several columns have to be of 0 and 1 each, {', '.join(wrong)} is not")
        if kind not in (None, "multi_label"):
            raise ConfigError(f"--kind: several label columns make multi_label, got {kind}")
        return Guess(texts=found, labels=own, kind="multi_label", separator=None, reasons=tuple(reasons))
    column = table.columns[own[0]]
    if kind is None:
        kind = _kind(column, reasons)
    separator = (column.separator or ",") if kind == "multi_label" and column.kind != "list" else None
    return Guess(texts=found, labels=own, kind=kind, separator=separator, reasons=tuple(reasons))


def _texts(table: Table, labels: Sequence[str], reasons: list[str]) -> tuple[str, ...]:
    free = [one for one in table.columns.values() if one.kind == "text" and one.name not in labels]
    if not free:
        raise ConfigError(f"--text: no column holds text; there are {', '.join(table.columns)}")
    longest = max(free, key=lambda one: one.words)
    names = {one.name.lower(): one for one in free if one.words >= longest.words / 4}
    for first, second in _SIDES:
        for name, one in names.items():
            other = names.get(name.removesuffix(first) + second) if name.endswith(first) else None
            if other is not None:
                reasons.append(f"text: {one.name} and {other.name}, whose names say that they are a pair")
                return one.name, other.name
    reasons.append(f"text: {longest.name}, the longest texts ({longest.words:.1f} words on average)")
    return (longest.name,)


def _labels(table: Table, texts: Sequence[str], reasons: list[str]) -> tuple[str, ...]:
    free = [one for one in table.columns.values() if one.name not in texts and len(one.counts) >= 2]
    named = [one for name in _LABELS for one in free if one.name.lower() == name]
    if named:
        reasons.append(f"label: {named[0].name}, by its name")
        return (named[0].name,)
    sets = [one for one in free if one.kind == "list" or one.separator]
    marks = [one for one in free if one.kind == "marks"]
    most = min(_MOST_LABELS, max(2, table.rows // _ROWS_PER_LABEL))
    again = [one for one in free if len(one.counts) < one.filled]  # where every value is another, none is a label
    few = [one for one in again if one.kind in ("text", "whole", "marks") and len(one.counts) <= most]
    scores = [one for one in free if one.kind == "number"]
    if sets:
        reasons.append(f"label: {sets[0].name}, whose values hold several labels each")
        return (sets[0].name,)
    if len(marks) > 1 and len(marks) == len(few):
        reasons.append(f"labels: {', '.join(one.name for one in marks)}, columns of 0 and 1")
        return tuple(one.name for one in marks)
    if few:
        found = min(few, key=lambda one: len(one.counts))
        reasons.append(f"label: {found.name}, the column of fewest different values ({len(found.counts)})")
        return (found.name,)
    if scores:
        reasons.append(f"label: {scores[0].name}, the first column of numbers")
        return (scores[0].name,)
    raise ConfigError(f"--label: no column looks like a label; name one of {', '.join(table.columns)}")


def _kind(column: Column, reasons: list[str]) -> Kind:
    count = len(column.counts)
    if column.kind == "list" or column.separator:
        between = "lists" if column.kind == "list" else f"labels with {column.separator!r} between them"
        reasons.append(f"kind: multi_label, as {column.name} holds {between} ({count} different values)")
        return "multi_label"
    if (column.kind == "whole" and count > _FEW_VALUES) or (column.kind == "number" and count > _FEW_DECIMALS):
        reasons.append(f"kind: regression, as {column.name} has {count:,} different numbers")
        return "regression"
    reasons.append(f"kind: classification, as {column.name} has {count:,} different values")
    return "classification"
