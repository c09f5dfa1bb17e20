"""Labels as people's files have them: of wrong types, in two spellings, unknown ones; and files with empty columns."""

import json
from collections import Counter
from pathlib import Path
from typing import Any
from unicodedata import normalize

import pytest
from tiny import WORDS

from nni_bertnas.config import CustomSettings, TaskSettings
from nni_bertnas.data.task_data import load_task
from nni_bertnas.errors import ConfigError

NAMES = ("negative", "positive")


def write(path: Path, labels: tuple[Any, ...] = NAMES, count: int = 60, header: str = "text,label") -> str:
    """A CSV whose labels take turns; every text once."""
    rows = [f"{WORDS[n % 95]} {WORDS[n // 95]} {n} {path.stem},{labels[n % len(labels)]}" for n in range(count)]
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return str(path)


def task(train: str, **fields: Any) -> TaskSettings:
    own = {name: fields.pop(name) for name in list(fields) if name in CustomSettings.__dataclass_fields__}
    custom = CustomSettings(**{"train": train, "text_columns": ["text"], **own})
    return TaskSettings(name="custom", source="files", custom=custom, **fields)


def test_a_label_that_is_a_list_is_named(tmp_path: Path) -> None:
    lines = [{"text": f"qaa {number}", "label": [["joy"], ["joy", "anger"]][number % 2]} for number in range(60)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(ConfigError, match=r"a.jsonl:1: label must be one text or number, got list .*multi_label"):
        load_task(task(str(tmp_path / "a.jsonl")))


def test_two_spellings_of_unicode_are_one_label(tmp_path: Path) -> None:
    names = ("café", "thé")
    composed, decomposed = (tuple(normalize(form, name) for name in names) for form in ("NFC", "NFD"))
    assert composed != decomposed
    train, dev = write(tmp_path / "a.csv", (*composed, *decomposed)), write(tmp_path / "b.csv", decomposed, 20)
    data = load_task(task(train, dev=dev))
    assert data.label_names == composed
    assert Counter(data.splits["dev"].labels) == {0: 10, 1: 10}
    given = load_task(task(train, labels=list(decomposed)))
    assert len(given.label_names) == 2 and set(given.splits["train"].labels) == {0, 1}


def test_rows_without_a_valid_label_are_left_out_where_that_is_asked_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train = write(tmp_path / "a.csv")
    with (tmp_path / "a.csv").open("a") as file:
        file.write("qaa qab,-\n")
    with pytest.raises(ConfigError, match=r"a.csv:62: the label '-'.*task.bad_rows: skip"):
        load_task(task(train, labels=list(NAMES), bad_rows="error"))
    with (tmp_path / "a.csv").open("a") as file:
        file.write("qac,\n")
    data = load_task(task(train, labels=list(NAMES), bad_rows="skip"))
    assert sum(map(len, data.splits.values())) == 60
    assert "1 row(s) without a valid label left out" in caplog.text and "a.csv:62: label '-'" in caplog.text


def test_scores_that_are_no_numbers_likewise(tmp_path: Path) -> None:
    train = write(tmp_path / "a.csv", (0.5, 2.5))
    with (tmp_path / "a.csv").open("a") as file:
        file.write("qaa qab,n/a\nqac,inf\n")
    with pytest.raises(ConfigError, match=r"a.csv:62: label must be a number, got 'n/a'.*task.bad_rows: skip"):
        load_task(task(train, kind="regression"))
    data = load_task(task(train, kind="regression", bad_rows="skip"))
    assert sum(map(len, data.splits.values())) == 60 and set(data.splits["train"].labels) == {0.5, 2.5}


def test_fewer_rows_than_labels_are_the_fault_of_the_setting(tmp_path: Path) -> None:
    train = write(tmp_path / "a.csv", tuple(f"l{number}" for number in range(30)), 360)
    with pytest.raises(ConfigError, match=r"task.max_train_rows must be at least 30, a row of every label, got 20"):
        load_task(task(train, max_train_rows=20))
    assert len(load_task(task(train, max_train_rows=40)).splits["train"]) == 40


def test_columns_without_a_name_are_passed_over(tmp_path: Path) -> None:
    labels = tuple(f"{name},,," for name in ("ham", "spam"))
    data = load_task(task(write(tmp_path / "spam.csv", labels, header="text,label,,,")))
    assert data.label_names == ("ham", "spam") and sum(map(len, data.splits.values())) == 60
