"""Texts that stand in a file more than once never are both learnt and tested."""

import logging
from pathlib import Path
from typing import Any

import pytest

from nni_bertnas.config import CustomSettings, TaskSettings
from nni_bertnas.data.rows import Rows
from nni_bertnas.data.splits import split, strata_of
from nni_bertnas.data.task_data import load_task
from nni_bertnas.errors import ConfigError


def write(path: Path, numbers: range | list[int]) -> str:
    path.write_text("text,label\n" + "".join(f"text {number},{'ab'[number % 2]}\n" for number in numbers))
    return str(path)


def task(repeated: str = "drop", **files: str) -> TaskSettings:
    custom = CustomSettings(text_columns=["text"], **files)  # type: ignore[arg-type]
    fields: dict[str, Any] = {"repeated": repeated}
    return TaskSettings(name="custom", source="files", custom=custom, **fields)


def test_equal_texts_stay_in_one_split(tmp_path: Path) -> None:
    found = load_task(task(train=write(tmp_path / "a.csv", list(range(20)) * 6))).splits
    sets = [set(rows.texts) for rows in found.values()]
    assert sum(map(len, sets)) == 20 and sum(len(rows) for rows in found.values()) == 120
    assert all(len(rows) % 6 == 0 and set(rows.labels) == {0, 1} for rows in found.values())


def test_pairs_are_equal_where_both_texts_are() -> None:
    rows = Rows(["a"] * 40, [0, 1] * 20, [f"b {number // 2}" for number in range(40)])
    first, second = split(rows, strata_of(()), 0.25)
    assert len(second) == 10 and not set(first.pairs or ()) & set(second.pairs or ())


def test_rows_of_a_dev_file_that_stand_in_train(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train, dev = write(tmp_path / "a.csv", range(100)), write(tmp_path / "b.csv", range(90, 120))
    with caplog.at_level(logging.WARNING):
        found = load_task(task(train=train, dev=dev)).splits
    known = len(set(found["train"].texts) & {f"text {number}" for number in range(90, 100)})
    assert known > 0 and len(found["dev"]) == 30 - known
    assert f"{known} of 30 rows of dev stand in train, too: left out" in caplog.text
    assert not set(found["train"].texts) & set(found["dev"].texts)
    with caplog.at_level(logging.WARNING):
        assert len(load_task(task("keep", train=train, dev=dev)).splits["dev"]) == 30
    assert "stand in train, too: kept" in caplog.text
    alike = write(tmp_path / "c.csv", range(100))
    with pytest.raises(ConfigError, match=r"task\.custom\.dev: every row of it stands in train, too"):
        load_task(task(train=train, dev=alike, test=write(tmp_path / "d.csv", range(200, 240))))
