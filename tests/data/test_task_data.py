import hashlib
from collections import Counter
from pathlib import Path

import pytest
from tiny import write_tiny_task

from nni_bertnas.config import TaskSettings
from nni_bertnas.data.rows import Rows
from nni_bertnas.data.splits import eighths, strata_of
from nni_bertnas.data.task_data import load_task
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


def test_missing_sources_are_named() -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        load_task(TaskSettings(name="sst2", source="glue", data_dir="nowhere"))
    with pytest.raises(ConfigError, match="not a GLUE task"):
        load_task(TaskSettings(name="rotten_tomatoes", source="glue", data_dir="."))
    with pytest.raises(ConfigError, match="no package holds sst2"):
        load_task(TaskSettings(name="sst2", source="package"))
