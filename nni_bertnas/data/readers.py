"""Files of rows: CSV, TSV, JSON Lines, Parquet. Every record knows where it stands; nothing is dropped in silence."""

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nni_bertnas.errors import ConfigError


@dataclass(frozen=True)
class Record:
    """One row of a file.

    Attributes:
        where: File and line, for messages.
        values: By column.
        problem: Why it cannot be read; empty where it can.
    """

    where: str
    values: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""


def read_records(
    path: Path, *, literal_quotes: bool = False, header: tuple[str, ...] | None = None
) -> Iterator[Record]:
    """The rows of a file, by the ending of its name: .csv, .tsv, .jsonl, .parquet.

    Args:
        path: The file; UTF-8, with or without byte-order mark; lines end in LF or CRLF.
        literal_quotes: Of .csv and .tsv: a quote is a character like any other, as in GLUE's files.
        header: The columns of a file that does not name them.

    Raises:
        ConfigError: It is missing, empty, of another kind, or unreadable as a whole.
    """
    if not path.is_file():
        raise ConfigError(f"{path} does not exist or is not a file; correct the path")
    try:
        read = READERS[path.suffix.lower()]
    except KeyError:
        raise ConfigError(f"{path}: its name must end in one of {', '.join(READERS)}") from None
    yield from read(path, literal_quotes, header)


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines with their ends; cut at line feeds alone, as texts may hold other separators of Unicode."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise ConfigError(f"{path}:{number}: not UTF-8 ({error.reason}); convert the file to UTF-8") from None


def read_fields(path: Path, literal_quotes: bool) -> Iterator[tuple[int, list[str]]]:
    """The fields of every line of a .csv or .tsv, its header's too, with the number of the line.

    A blank line has none; an empty field in quotes is one. Arguments as of :func:`read_records`.
    """
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    if literal_quotes:
        plain = ((number, line.rstrip("\r\n")) for number, line in read_lines(path))
        return ((number, line.split(delimiter)) for number, line in plain if line)
    return _quoted(path, delimiter)


def _read_separated(path: Path, literal_quotes: bool, header: tuple[str, ...] | None) -> Iterator[Record]:
    columns = header
    for number, fields in read_fields(path, literal_quotes):
        if not fields:
            continue
        if columns is None:
            columns = tuple(name.strip() for name in fields)
            named = [name for name in columns if name]  # spreadsheets leave empty columns behind
            if len(set(named)) < len(named):
                raise ConfigError(f"{path}:{number}: the header names a column twice: {', '.join(columns)}; rename one")
        elif len(fields) != len(columns):
            message = f"must have {len(columns)} fields as the header has, has {len(fields)}"
            yield Record(f"{path}:{number}", problem=message)
        else:
            values = {name: value for name, value in zip(columns, fields, strict=True) if name}
            yield Record(f"{path}:{number}", values)
    if columns is None:
        raise ConfigError(f"{path} is empty; give a file with rows")


def _quoted(path: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    csv.field_size_limit(1 << 30)  # a text may be long
    reader = csv.reader((line for _, line in read_lines(path)), delimiter=delimiter, strict=True)
    start = 1
    try:
        for fields in reader:
            yield start, fields
            start = reader.line_num + 1
    except csv.Error as error:
        raise ConfigError(
            f"{path}:{start}: not valid {path.suffix[1:].upper()} ({error}); mend the quotes, or set "
            "task.custom.quotes: literal if they are part of the text"
        ) from None


def _read_json_lines(path: Path, literal_quotes: bool, header: tuple[str, ...] | None) -> Iterator[Record]:
    number = 0
    for number, line in read_lines(path):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield Record(f"{path}:{number}", problem=f"not JSON: {error}")
            continue
        if isinstance(values, dict):
            yield Record(f"{path}:{number}", values)
        else:
            yield Record(f"{path}:{number}", problem=f"must be one JSON object a line, got {type(values).__name__}")
    if number == 0:
        raise ConfigError(f"{path} is empty; give a file with rows")


def _read_parquet(path: Path, literal_quotes: bool, header: tuple[str, ...] | None) -> Iterator[Record]:
    from pyarrow import ArrowException, parquet  # takes a moment to load, and few files are of this kind

    try:
        with parquet.ParquetFile(path) as file:
            number, names = 0, file.schema_arrow.names
            if len(set(names)) < len(names):
                raise ConfigError(f"{path} names a column twice: {', '.join(names)}; rename one")
            for batch in file.iter_batches():
                for values in batch.to_pylist():
                    number += 1
                    yield Record(f"{path}: row {number}", values)
    except (ArrowException, OSError) as error:
        raise ConfigError(f"{path}: not a readable Parquet file ({error}); write it anew") from None


READERS: dict[str, Callable[[Path, bool, tuple[str, ...] | None], Iterator[Record]]] = {
    ".csv": _read_separated,
    ".tsv": _read_separated,
    ".jsonl": _read_json_lines,
    ".parquet": _read_parquet,
}
