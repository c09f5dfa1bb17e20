"""What `predict` writes: the user's columns to the letter, and its own beside them."""

import csv
import json
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from nni_bertnas.cli import main
from nni_bertnas.deploy.copies import check_target, write_copy
from nni_bertnas.errors import ConfigError
from nni_bertnas.stages.run import Run

LINES = [
    '{"tweet_id": 1284573920174837761, "text": "qaa qab", "x": 0.1234567890123456}',
    '{"tweet_id": 1284573920174837763, "text": "qac", "x": 2.50, "y": [1, null]}',
    '{"text": "qad é", "x": 1e-12, "b": true, "n": null}',
    "{}",
]
NEW = [{"prediction": f"p{number}", "probability_a": number / 8} for number in range(4)]


def copy(source: Path, target: Path, *, literal: bool = False) -> Path:
    write_copy(source, target, NEW, literal_quotes=literal)
    return target


def test_json_lines_keep_every_character(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text("\n\n".join(LINES) + "\n", encoding="utf-8")
    found = copy(tmp_path / "in.jsonl", tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()
    for line, own, new in zip(found, LINES, NEW, strict=True):
        assert line.startswith(own[:-1].rstrip()) and json.loads(line) == {**json.loads(own), **new}


def test_json_lines_as_csv_spell_numbers_as_they_came(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text("\n".join(LINES), encoding="utf-8")
    with copy(tmp_path / "in.jsonl", tmp_path / "out.csv").open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["tweet_id", "text", "x", "y", "b", "n", "prediction", "probability_a"]
    assert rows[0] == ["1284573920174837761", "qaa qab", "0.1234567890123456", "", "", "", "p0", "0.0"]
    assert rows[1] == ["1284573920174837763", "qac", "2.50", "[1, null]", "", "", "p1", "0.125"]
    assert rows[2] == ["", "qad é", "1e-12", "", "true", "", "p2", "0.25"]


cells = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\x00\r"), max_size=6)


@given(st.lists(st.lists(cells, min_size=2, max_size=2), min_size=4, max_size=4), st.sampled_from([".csv", ".tsv"]))
@settings(max_examples=100, deadline=None)
def test_cells_of_csv_come_back_as_they_are(tmp_path_factory: pytest.TempPathFactory, rows: list, ending: str) -> None:
    folder = tmp_path_factory.mktemp("csv")
    with (folder / f"in{ending}").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter="\t" if ending == ".tsv" else ",").writerows([["a", "b"], *rows])
    for target, delimiter in (("out.csv", ","), ("out.tsv", "\t")):
        with copy(folder / f"in{ending}", folder / target).open(encoding="utf-8", newline="") as file:
            found = list(csv.reader(file, delimiter=delimiter))
        assert [row[:2] for row in found] == [["a", "b"], *rows] and found[2][2:] == ["p1", "0.125"]
    lines = copy(folder / f"in{ending}", folder / "out.jsonl").read_text(encoding="utf-8").split("\n")
    assert [[json.loads(line)[name] for name in "ab"] for line in lines[:-1]] == rows
    table = parquet.read_table(copy(folder / f"in{ending}", folder / "out.parquet")).to_pylist()
    assert [[row["a"], row["b"]] for row in table] == rows and table[3]["prediction"] == "p3"


def test_quotes_that_are_part_of_the_text_and_unnamed_columns_stay(tmp_path: Path) -> None:
    content = 'text\tid\t\t\n"qaa\t1\t\tx\nqa"b\t2\t\t\nc\t3\t\t\nd\t4\t"\t\n'
    (tmp_path / "in.tsv").write_text(content)
    found = copy(tmp_path / "in.tsv", tmp_path / "out.tsv", literal=True).read_text().splitlines()
    assert [line.rsplit("\t", 2)[0] for line in found] == content.splitlines()


def test_parquet_keeps_its_types(tmp_path: Path) -> None:
    table = pa.table(
        {"id": pa.array([2**60, None, 3, 4]), "x": pa.array([0.1, 1e-300, None, 2.0]), "t": ["a", "b", "c", None]}
    )
    parquet.write_table(table, tmp_path / "in.parquet")
    found = parquet.read_table(copy(tmp_path / "in.parquet", tmp_path / "out.parquet"))
    assert found.select(table.column_names).equals(table) and found["prediction"].to_pylist() == [
        "p0",
        "p1",
        "p2",
        "p3",
    ]
    with copy(tmp_path / "in.parquet", tmp_path / "out.csv").open(newline="") as file:
        assert list(csv.reader(file))[1] == [str(2**60), "0.1", "a", "p0", "0.0"]


def test_what_cannot_be_written_is_said_before_any_work(
    built: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "in.csv"
    source.write_text("sentence\nqaa\n")
    with pytest.raises(ConfigError, match=r"the folder .*nowhere does not exist"):
        check_target(source, tmp_path / "nowhere" / "out.csv")
    with pytest.raises(ConfigError, match="is the file itself"):
        check_target(source, source)
    (tmp_path / "a.csv").mkdir()
    with pytest.raises(ConfigError, match="is a folder"):
        check_target(source, tmp_path / "a.csv")
    assert main(["predict", str(built.folder("teacher")), str(source), "--output", str(tmp_path / "no" / "o.csv")]) == 2
    assert "does not exist; make it first" in capsys.readouterr().err


def test_a_failed_copy_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("a\n1\n2\n")
    (tmp_path / "out.csv").write_text("old")
    with pytest.raises(ValueError, match="argument 2 is longer"):
        copy(tmp_path / "in.csv", tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_text() == "old" and len(list(tmp_path.iterdir())) == 2
