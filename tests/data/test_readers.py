import csv
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from nni_bertnas.data.readers import Record, read_records
from nni_bertnas.errors import ConfigError

BOM = b"\xef\xbb\xbf"
COLUMNS = ("first", "second", "third")
SPECIAL = "\"',\t\n\r\u2028\u0085\x0b\x0c\x1e\ufeff é😀"
characters = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
texts = st.text(st.one_of(characters, st.sampled_from(SPECIAL)), max_size=12)
tables = st.lists(st.tuples(texts, texts, texts), max_size=6)
# One blank field would be a blank line, which is passed over.
literal = st.lists(
    st.tuples(*[st.text(st.one_of(st.just('"'), characters.filter(lambda c: c not in "\t\n\r")), max_size=12)] * 3),
    min_size=1,
    max_size=6,
)
many = settings(max_examples=50, deadline=None)


def read(name: str, content: bytes, **options: Any) -> list[Record]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        path.write_bytes(content)
        return list(read_records(path, **options))


def place(record: Record) -> str:
    """Line or row alone, without the file."""
    return record.where.rsplit(":", 1)[1].strip()


def dicts(rows: list[tuple[str, ...]]) -> list[dict[str, str]]:
    return [dict(zip(COLUMNS, row, strict=True)) for row in rows]


@pytest.mark.parametrize(("name", "delimiter"), [("rows.csv", ","), ("rows.tsv", "\t"), ("ROWS.CSV", ",")])
@many
@given(rows=tables, line_end=st.sampled_from(["\n", "\r\n"]), bom=st.booleans(), all_quoted=st.booleans())
@example(rows=[("a\n\nb", "\r", '"'), ("\r\n", "x", "\u2028"), ("", "", "")], line_end="\n", bom=True, all_quoted=True)
def test_quoted_rows_come_back_with_the_line_each_starts_on(
    name: str, delimiter: str, rows: list[tuple[str, ...]], line_end: str, bom: bool, all_quoted: bool
) -> None:
    lone_return = any("\r" in field for row in rows for field in row)  # older versions of csv write it unquoted
    buffer = io.StringIO(newline="")
    quoting = csv.QUOTE_ALL if all_quoted or lone_return else csv.QUOTE_MINIMAL
    writer = csv.writer(buffer, delimiter=delimiter, lineterminator=line_end, quoting=quoting)
    lines = []
    for row in (COLUMNS, *rows):
        lines.append(1 + buffer.getvalue().count("\n"))
        writer.writerow(row)
    records = read(name, BOM * bom + buffer.getvalue().encode())
    assert [record.values for record in records] == dicts(rows)
    assert [int(place(record)) for record in records] == lines[1:]
    assert not any(record.problem for record in records)


@many
@given(
    rows=literal,
    line_end=st.sampled_from(["\n", "\r\n"]),
    bom=st.booleans(),
    end_of_last=st.booleans(),
    has_header=st.booleans(),
)
@example(rows=[('"a', "b", 'c"'), ('""', "", '"')], line_end="\n", bom=True, end_of_last=False, has_header=False)
def test_literal_quotes_are_kept(
    rows: list[tuple[str, ...]], line_end: str, bom: bool, end_of_last: bool, has_header: bool
) -> None:
    table = [COLUMNS, *rows] if has_header else rows
    if not has_header and rows[0][0].startswith("\ufeff"):
        bom = True  # without a mark of its own, the file's first character would be taken for one
    content = line_end.join("\t".join(row) for row in table) + line_end * end_of_last
    header = None if has_header else COLUMNS
    records = read("rows.tsv", BOM * bom + content.encode(), literal_quotes=True, header=header)
    assert [record.values for record in records] == dicts(rows)
    assert [int(place(record)) for record in records] == [number + 1 + has_header for number in range(len(rows))]


values = st.one_of(texts, st.integers(-(2**53), 2**53), st.floats(allow_nan=False), st.none())


@many
@given(
    rows=st.lists(st.dictionaries(texts, values, max_size=4), min_size=1, max_size=6),
    ascii_only=st.booleans(),
    line_end=st.sampled_from(["\n", "\r\n", "\n \n"]),
    bom=st.booleans(),
)
def test_json_lines_come_back(rows: list[dict[str, Any]], ascii_only: bool, line_end: str, bom: bool) -> None:
    content = "".join(json.dumps(row, ensure_ascii=ascii_only) + line_end for row in rows)
    records = read("rows.jsonl", BOM * bom + content.encode())
    assert [record.values for record in records] == rows
    step = line_end.count("\n")
    assert [int(place(record)) for record in records] == [1 + step * number for number in range(len(rows))]


@many
@given(rows=st.lists(st.tuples(texts, st.integers(-9, 9), st.floats(allow_nan=False) | st.none()), max_size=6))
def test_parquet_comes_back(rows: list[tuple[Any, ...]]) -> None:
    types = (pyarrow.string(), pyarrow.int64(), pyarrow.float64())
    table = pyarrow.Table.from_pylist(dicts(rows), schema=pyarrow.schema(zip(COLUMNS, types, strict=True)))
    buffer = io.BytesIO()
    parquet.write_table(table, buffer, row_group_size=2)
    records = read("rows.parquet", buffer.getvalue())
    assert [record.values for record in records] == dicts(rows)
    assert [place(record) for record in records] == [f"row {number + 1}" for number in range(len(rows))]


@pytest.mark.parametrize(
    ("name", "content", "options", "line", "problem"),
    [
        ("a.csv", 'a,b\n"x\ny",1\nz\n', {}, 4, "must have 2 fields as the header has, has 1"),
        ("a.csv", "a,b\nx,1\n\nz,2,3\n", {}, 4, "must have 2 fields as the header has, has 3"),
        ("a.tsv", "a\tb\n\t1\tx\n", {}, 2, "must have 2 fields as the header has, has 3"),
        ("a.tsv", 'a\tb\n"x\n', {"literal_quotes": True}, 2, "must have 2 fields as the header has, has 1"),
        ("a.tsv", "x\t1\nx\n", {"header": ("a", "b")}, 2, "must have 2 fields as the header has, has 1"),
        ("a.jsonl", '{"a": 1}\n{"a": \n', {}, 2, "not JSON"),
        ("a.jsonl", "{}\n\n[1, 2]\n", {}, 3, "must be one JSON object a line, got list"),
    ],
)
def test_a_damaged_row_is_one_record_with_its_line(
    name: str, content: str, options: dict[str, Any], line: int, problem: str
) -> None:
    (record,) = [record for record in read(name, content.encode(), **options) if record.problem]
    assert record.where.endswith(f"{name}:{line}") and record.problem.startswith(problem) and not record.values


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", r"a\.csv is empty"),
        ("a.csv", BOM, r"a\.csv is empty"),
        ("a.tsv", b"\n\r\n", r"a\.tsv is empty"),
        ("a.jsonl", b"", r"a\.jsonl is empty"),
        ("a.parquet", b"", r"a\.parquet: not a readable Parquet file"),
        ("a.parquet", b"PAR1 and no more PAR1", r"a\.parquet: not a readable Parquet file"),
        ("a.csv", b'a,b\n"x\ny",1\n"z,2\nw,3\n', r"a\.csv:4: not valid CSV .*mend the quotes"),
        ("a.tsv", b'a\tb\n"x"y\t1\n', r"a\.tsv:2: not valid TSV .*literal"),
        ("a.csv", b"a,b\nx,1\ncaf\xe9,2\n", r"a\.csv:3: not UTF-8"),
        ("a.jsonl", b'{"a": "\xff"}\n', r"a\.jsonl:1: not UTF-8"),
        ("a.csv", b"a,b, a\nx,1,2\n", r"a\.csv:1: the header names a column twice: a, b, a"),
        ("a.txt", b"x\n", r"a\.txt: its name must end in one of \.csv, \.tsv, "),
        ("a", b"x\n", r"must end in one of"),
    ],
)
def test_a_file_unreadable_as_a_whole_is_one_clear_error(name: str, content: bytes, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(name, content)


def test_a_truncated_parquet_file_is_one_clear_error() -> None:
    buffer = io.BytesIO()
    parquet.write_table(pyarrow.table({"text": ["some text"] * 100}), buffer)
    assert len(read("a.parquet", buffer.getvalue())) == 100
    with pytest.raises(ConfigError, match="not a readable Parquet file"):
        read("a.parquet", buffer.getvalue()[:-20])


@pytest.mark.parametrize(
    ("name", "content"), [("a.csv", b"a,b\r\n"), ("a.csv", BOM + b"\na,b"), ("a.tsv", b"a\tb\n\n"), ("a.jsonl", b"\n")]
)
def test_a_file_without_rows_gives_no_records(name: str, content: bytes) -> None:
    assert read(name, content) == []


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(ConfigError, match="does not exist or is not a file"):
            list(read_records(path))


def test_an_empty_field_in_quotes_is_a_row_and_a_blank_line_is_none(tmp_path: Path) -> None:
    (tmp_path / "one.csv").write_text('text\nx\n""\n\ny\n')
    found = [(record.where.rsplit(":", 1)[1], record.values["text"]) for record in read_records(tmp_path / "one.csv")]
    assert found == [("2", "x"), ("3", ""), ("5", "y")]


def test_damaged_pages_and_repeated_columns_of_parquet_are_named(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    path = tmp_path / "rows.parquet"
    parquet.write_table(pa.table([pa.array(["a"]), pa.array(["b"])], names=["text", "text"]), path)
    with pytest.raises(ConfigError, match="names a column twice: text, text"):
        list(read_records(path))
    generator = np.random.default_rng(0)
    parquet.write_table(pa.table({"text": [generator.bytes(40).hex() for _ in range(5000)]}), path)
    content = bytearray(path.read_bytes())
    content[1000:60000] = b"\xff" * 59000
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="not a readable Parquet file"):
        list(read_records(path))
