import hashlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from tiny import write_tiny_task

from nni_bertnas.artifacts import fingerprint
from nni_bertnas.config import CustomSettings, TaskSettings, to_dict
from nni_bertnas.data.rows import Rows
from nni_bertnas.data.sources import SOURCES
from nni_bertnas.data.splits import SPLIT_SEED, SPLITTING, eighths, strata_of
from nni_bertnas.data.task_data import data_fingerprint, load_task
from nni_bertnas.data.tasks import task_spec
from nni_bertnas.errors import ConfigError


def test_movie_reviews_split_is_fixed_stratified_and_disjoint() -> None:
    rows = load_task(TaskSettings()).splits
    assert {name: len(part) for name, part in rows.items()} == {"train": 6397, "dev": 1066, "test": 1067}
    assert sum(len(part) for part in rows.values()) == 8530
    for part in rows.values():
        counts = Counter(part.labels)
        assert abs(counts[0] - counts[1]) <= 1
    texts = [text for part in rows.values() for text in part.texts]
    assert len(set(texts)) == len(texts)
    assert load_task(TaskSettings()).splits["dev"].texts == rows["dev"].texts
    # Any other split would make scores of different studies incomparable.
    assert hashlib.sha256("\n".join(rows["dev"].texts).encode()).hexdigest().startswith("55bc6f75276361ff")


def test_a_task_with_splits_of_its_own_keeps_them() -> None:
    rows = Rows([f"text {number}" for number in range(80)], [0, 1] * 40)
    by = strata_of(("a", "b"))
    found = eighths({"train": rows, "glue_dev": rows}, by)
    assert set(found) == {"train", "dev", "glue_dev"} and found["glue_dev"] is rows
    assert set(eighths({"train": rows}, by)) == {"train", "dev", "test"}


def test_glue_layout(tmp_path: Path) -> None:
    folder = write_tiny_task(tmp_path, 200, 30)
    rows = load_task(TaskSettings(name="sst2", source="glue", data_dir=str(folder))).splits
    assert {name: len(part) for name, part in rows.items()} == {"train": 180, "dev": 20, "glue_dev": 30}
    first = (folder / "SST-2" / "dev.tsv").read_text().splitlines()[1].split("\t")
    assert rows["glue_dev"].texts[0] == first[0].strip() and rows["glue_dev"].labels[0] == int(first[1])


def test_fewer_training_rows_leave_dev_and_test_alone(tmp_path: Path) -> None:
    folder = str(write_tiny_task(tmp_path))
    everything = load_task(TaskSettings(name="sst2", source="glue", data_dir=folder)).splits
    part = load_task(TaskSettings(name="sst2", source="glue", data_dir=folder, max_train_rows=50)).splits
    assert len(part["train"]) == 50 and part["dev"] == everything["dev"] and part["glue_dev"] == everything["glue_dev"]
    assert Counter(part["train"].labels) == {0: 25, 1: 25}


def test_fewer_rows_to_evaluate_leave_train_and_old_results_alone(tmp_path: Path) -> None:
    task = TaskSettings(name="sst2", source="glue", data_dir=str(write_tiny_task(tmp_path)))
    everything, few = load_task(task).splits, load_task(replace(task, max_eval_rows=16)).splits
    assert few["train"] == everything["train"] and len(few["dev"]) == len(few["glue_dev"]) == 16
    for name in ("dev", "glue_dev"):
        places = [everything[name].texts.index(text) for text in few[name].texts]
        assert places == sorted(places) and everything[name].take(places) == few[name]
    assert load_task(replace(task, max_eval_rows=16)).splits == few
    assert data_fingerprint(replace(task, max_eval_rows=16)) != data_fingerprint(task)
    before = {name: value for name, value in to_dict(task).items() if name not in ("data_dir", "max_eval_rows")}
    source = SOURCES["glue"].fingerprint(task, task_spec(task))
    assert data_fingerprint(task) == fingerprint(before, SPLIT_SEED, SPLITTING, source)


def test_a_part_of_train_never_takes_the_last_rows_of_a_label(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text,label\n" + "".join(f"text {number},{number % 5}\n" for number in range(100)))
    task = TaskSettings(
        name="custom", source="files", custom=CustomSettings(train=str(path), text_columns=["text"]), max_train_rows=78
    )
    rows = load_task(task).splits["train"]  # of 80
    assert len(rows) == 75 and set(rows.labels) == {0, 1, 2, 3, 4}


def test_missing_sources_are_named() -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        load_task(TaskSettings(name="sst2", source="glue", data_dir="nowhere"))
    with pytest.raises(ConfigError, match="not a GLUE task"):
        load_task(TaskSettings(name="rotten_tomatoes", source="glue", data_dir="."))
    with pytest.raises(ConfigError, match="no package holds sst2"):
        load_task(TaskSettings(name="sst2", source="package"))
