"""New rows on disk: written part by part, so that an interrupted run goes on, then joined into one file."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from nni_bertnas.augment.replace import Replacements, augment_rows
from nni_bertnas.config import AugmentSettings
from nni_bertnas.data.rows import Rows
from nni_bertnas.errors import ConfigError

_PART_ROWS = 256  # rows of train between two savings
LABELLED = "labelled"  # folder of a store with the teacher's labels, which has no hidden states
_COPIES = "copies.npy"


@dataclass(frozen=True, kw_only=True)
class NewRows:
    """Rows that came out of an augmentation.

    Attributes:
        rows: With the labels of the rows that they come from.
        origin: Number of that row of train, `(num_rows,)`.
        copies: Number of the copy, `(num_rows,)`.
        counts: Tries, rows, shares of unchanged and duplicate copies.
    """

    rows: Rows
    origin: np.ndarray
    copies: np.ndarray
    counts: dict[str, Any]

    def write(self, path: Path, texts: tuple[str, ...], label: str, note: str) -> None:
        """Write them as Parquet, in the columns of the task, with a note of how they were made."""
        sides = [self.rows.texts] if self.rows.pairs is None else [self.rows.texts, self.rows.pairs]
        columns = {**dict(zip(texts, sides, strict=True)), label: self.rows.labels}
        table = pa.table({**columns, "row": self.origin.tolist(), "copy": self.copies.tolist()})
        parquet.write_table(table.replace_schema_metadata({"bertnas_augment": note}), path)


def write_parts(
    parts: Path,
    train: Rows,
    settings: AugmentSettings,
    seed: int,
    load: Callable[[], Replacements],
    progress: Callable[[int, int], None],
) -> float:
    """Write what is missing of the new rows' texts, part by part.

    Args:
        parts: Folder of the parts.
        train: The rows that are augmented.
        settings: How.
        seed: Of all random choices.
        load: Gives what words may be replaced by; called only where a part is missing.
        progress: Takes the rows of train done, and how many there are.

    Returns:
        The seconds of all parts, old ones too.
    """
    parts.mkdir(parents=True, exist_ok=True)
    replacements: Replacements | None = None
    seconds = 0.0
    for first in range(0, len(train), _PART_ROWS):
        numbers = range(first, min(first + _PART_ROWS, len(train)))
        file = parts / f"{first:09d}.parquet"
        if not file.exists():
            replacements = replacements or load()
            start = time.perf_counter()
            made = list(augment_rows(train, numbers, replacements, settings, seed))
            columns: dict[str, Any] = {"row": [one[0] for one in made], "copy": [one[1] for one in made]}
            for side in range(1 if train.pairs is None else 2):
                columns[f"text{side}"] = [one[2][side] for one in made]
            took = {"seconds": str(time.perf_counter() - start)}
            fresh = file.with_suffix(".fresh")
            parquet.write_table(pa.table(columns).replace_schema_metadata(took), fresh)
            fresh.replace(file)
        seconds += float(parquet.read_schema(file).metadata[b"seconds"])
        progress(numbers.stop, len(train))
    return seconds


def merge_parts(parts: Path, train: Rows) -> NewRows:
    """Join parts without copies that are unchanged, or equal to another or to a row of train.

    Raises:
        ConfigError: Nothing is left.
    """
    seen = set(zip(train.texts, train.pairs or train.texts, strict=True))
    texts: list[str] = []
    pairs: list[str] = []
    origin: list[int] = []
    copies: list[int] = []
    tries = unchanged = 0
    for file in sorted(parts.glob("*.parquet")):
        table = parquet.read_table(file)
        second = table.column("text1" if train.pairs is not None else "text0")
        columns = (table.column("row"), table.column("copy"), table.column("text0"), second)
        for number, copy, text, pair in zip(*(column.to_pylist() for column in columns), strict=True):
            tries += 1
            if text == train.texts[number] and (train.pairs is None or pair == train.pairs[number]):
                unchanged += 1
            elif (text, pair) not in seen:
                seen.add((text, pair))
                texts.append(text)
                pairs.append(pair)
                origin.append(number)
                copies.append(copy)
    if not texts:
        raise ConfigError("augment: no word of train could be replaced; raise augment.probability, or set copies: 0")
    rows = Rows(texts, [train.labels[number] for number in origin], pairs if train.pairs is not None else None)
    counts = {
        "tries": tries,
        "rows": len(texts),
        "unchanged_share": unchanged / tries,
        "duplicate_share": (tries - unchanged - len(texts)) / tries,
    }
    return NewRows(rows=rows, origin=np.asarray(origin), copies=np.asarray(copies), counts=counts)


def save_copies(folder: Path, copies: np.ndarray) -> None:
    """Keep beside the labelled rows of which copy each is, `(num_rows,)`."""
    np.save(folder / LABELLED / _COPIES, copies)


def rows_of_copies(folder: Path, copies: int) -> np.ndarray:
    """The numbers of the labelled rows of so many copies per row."""
    return np.flatnonzero(np.load(folder / LABELLED / _COPIES) < copies)
