"""A user's file once more, with columns beside its own: what stood there stands there again, to the letter.

The file is read a second time while the copy is written, so that neither has to fit into memory; Parquet out of JSON
Lines alone is made at once, as its types are not known before.
"""

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from nni_bertnas.data.readers import READERS, read_fields, read_lines
from nni_bertnas.errors import ConfigError

_CHUNK = 4096  # rows
New = Mapping[str, Any]  # of one row: what is put beside the columns it has


def check_target(source: Path, target: Path) -> None:
    """Whether a copy of a file can be written.

    Raises:
        ConfigError: Of another ending than those that are known, into a folder that is not there, or over the file.
    """
    if target.suffix.lower() not in READERS:
        raise ConfigError(f"--output: {target} must end in one of {', '.join(READERS)}")
    if not target.parent.is_dir():
        raise ConfigError(f"--output: the folder {target.parent} does not exist; make it first")
    if target.is_dir() or (target.exists() and target.resolve() == source.resolve()):
        raise ConfigError(f"--output: {target} is {'a folder' if target.is_dir() else 'the file itself'}; name another")


def column_names(path: Path, *, literal_quotes: bool) -> list[str]:
    """All columns of a file, in their order; of JSON Lines those of any row."""
    kind = path.suffix.lower()
    if kind == ".parquet":
        from pyarrow import parquet  # takes a moment to load, and few files are of this kind

        return list(parquet.read_schema(path).names)
    if kind == ".jsonl":
        return list(dict.fromkeys(name for line in _json_lines(path) for name in json.loads(line)))
    return [name.strip() for name in next(read_fields(path, literal_quotes))[1]]


def write_copy(source: Path, target: Path, new: Iterable[New], *, literal_quotes: bool) -> None:
    """Write the rows of a file with new columns behind its own.

    Args:
        source: .csv, .tsv, .jsonl or .parquet.
        target: Likewise; written whole or not at all.
        new: Of every row, all with the same keys.
        literal_quotes: Of .csv and .tsv: a quote is a character like any other; where both end alike also in the copy.

    Raises:
        ConfigError: It cannot be written.
    """
    kind = target.suffix.lower()
    with _whole(target) as fresh:
        if kind == ".parquet":
            _write_parquet(source, fresh, new, literal_quotes)
        elif kind == ".jsonl":
            _write_json_lines(source, fresh, new, literal_quotes)
        else:
            _write_separated(source, fresh, new, literal_quotes, "\t" if kind == ".tsv" else ",")


@contextmanager
def _whole(target: Path) -> Iterator[Path]:
    fresh = target.with_name(f".{target.name}")
    try:
        yield fresh
        fresh.replace(target)
    except OSError as error:
        raise ConfigError(f"--output: {target} cannot be written ({error.strerror})") from error
    finally:
        fresh.unlink(missing_ok=True)


def _json_lines(path: Path) -> Iterator[str]:
    return (line.strip() for _, line in read_lines(path) if line.strip())


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else str(value)


def _cells(path: Path, names: Sequence[str], literal_quotes: bool) -> Iterator[Sequence[str]]:
    """Every row's cells as text; numbers of JSON as they are spelt."""
    kind = path.suffix.lower()
    if kind == ".parquet":
        for batch in _batches(path):
            yield from ([_text(row[name]) for name in names] for row in batch.to_pylist())
    elif kind == ".jsonl":
        for line in _json_lines(path):
            row, spelt = json.loads(line), json.loads(line, parse_float=str, parse_int=str, parse_constant=str)
            nested = {name for name, value in row.items() if isinstance(value, dict | list)}
            yield [_text(row[name] if name in nested else spelt.get(name)) for name in names]
    else:
        rows = (fields for _, fields in read_fields(path, literal_quotes) if fields)
        yield from islice(rows, 1, None)


def _write_separated(source: Path, fresh: Path, new: Iterable[New], literal: bool, delimiter: str) -> None:
    names = column_names(source, literal_quotes=literal)
    alike = literal and source.suffix.lower() == (".tsv" if delimiter == "\t" else ".csv")
    with fresh.open("w", encoding="utf-8", newline="") as file:
        quoted = csv.writer(file, delimiter=delimiter, lineterminator="\n")

        def write(cells: Sequence[str]) -> None:
            if alike:
                file.write(delimiter.join(cells) + "\n")
            else:
                quoted.writerow(cells)

        for number, (cells, more) in enumerate(zip(_cells(source, names, literal), new, strict=True)):
            if number == 0:
                write([*names, *more])
            write([*cells, *map(_text, more.values())])


def _write_json_lines(source: Path, fresh: Path, new: Iterable[New], literal: bool) -> None:
    with fresh.open("w", encoding="utf-8") as file:
        if source.suffix.lower() == ".jsonl":
            for line, more in zip(_json_lines(source), new, strict=True):
                own, added = line[:-1].rstrip(), json.dumps(more, ensure_ascii=False)
                file.write(f"{own}{'' if own.endswith('{') else ', '}{added[1:]}\n")
            return
        for row, more in zip(_rows(source, literal), new, strict=True):
            file.write(json.dumps({**row, **more}, ensure_ascii=False, default=str) + "\n")


def _rows(path: Path, literal_quotes: bool) -> Iterator[dict[str, Any]]:
    """Every row by column; of .csv and .tsv all cells are text."""
    kind = path.suffix.lower()
    if kind == ".parquet":
        for batch in _batches(path):
            yield from batch.to_pylist()
    elif kind == ".jsonl":
        yield from map(json.loads, _json_lines(path))
    else:
        names = column_names(path, literal_quotes=literal_quotes)
        yield from (dict(zip(names, cells, strict=True)) for cells in _cells(path, names, literal_quotes))


def _batches(path: Path) -> Iterator[Any]:
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        yield from file.iter_batches(_CHUNK)


def _write_parquet(source: Path, fresh: Path, new: Iterable[New], literal: bool) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    values, kind = iter(new), source.suffix.lower()
    tables: Iterator[Any]
    if kind == ".parquet":
        tables = (pa.Table.from_batches([batch]) for batch in _batches(source))
    elif kind == ".jsonl":
        tables = iter([pa.Table.from_pylist(list(_rows(source, literal)))])
    else:
        rows = _rows(source, literal)
        tables = (pa.Table.from_pylist(some) for some in iter(lambda: list(islice(rows, _CHUNK)), []))
    writer = None
    try:
        for table in tables:
            more = list(islice(values, len(table)))
            for name in more[0] if more else ():
                table = table.append_column(name, pa.array([one[name] for one in more]))
            writer = writer or parquet.ParquetWriter(fresh, table.schema)
            writer.write_table(table)
    finally:
        if writer is not None:
            writer.close()
