import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_tiny_task

from nni_bertnas.config import TaskConfig
from nni_bertnas.data.batches import (
    UNLABELLED,
    LengthBatches,
    TokenDataset,
    load_task,
    load_transfer,
    ragged_positions,
    source_files,
)
from nni_bertnas.errors import ConfigError


def test_movie_reviews_split_is_fixed_stratified_and_disjoint() -> None:
    rows = load_task(TaskConfig()).splits
    assert {name: len(part) for name, part in rows.items()} == {"train": 6397, "dev": 1066, "test": 1067}
    assert sum(len(part) for part in rows.values()) == 8530
    for part in rows.values():
        counts = Counter(part.labels)
        assert abs(counts[0] - counts[1]) <= 1
    texts = [text for part in rows.values() for text in part.texts]
    assert len(set(texts)) == len(texts)
    assert load_task(TaskConfig()).splits["dev"].texts == rows["dev"].texts
    # Any other split would make scores of different studies incomparable.
    assert hashlib.sha256("\n".join(rows["dev"].texts).encode()).hexdigest().startswith("55bc6f75276361ff")


def test_transfer_rows_are_unlabelled_new_sentences_and_a_fixed_choice() -> None:
    rows, few, more = (
        load_task(TaskConfig()).splits,
        *(load_transfer(TaskConfig(transfer_rows=count)) for count in (50, 80)),
    )
    assert len(few) == 50 and more.texts[:50] == few.texts and set(few.labels) == {UNLABELLED}
    assert not set(more.texts) & {text for part in rows.values() for text in part.texts}
    assert all(8 <= len(text.split()) <= 40 for text in more.texts)
    assert len(load_transfer(TaskConfig())) == 0
    with pytest.raises(ConfigError, match="at most"):
        load_transfer(TaskConfig(transfer_rows=10_000_000))


def test_glue_layout(tmp_path: Path) -> None:
    folder = write_tiny_task(tmp_path, 200, 30)
    rows = load_task(TaskConfig(name="sst2", source="glue", data_dir=str(folder))).splits
    assert {name: len(part) for name, part in rows.items()} == {"train": 180, "dev": 20, "glue_dev": 30}
    first = (folder / "SST-2" / "dev.tsv").read_text().splitlines()[1].split("\t")
    assert rows["glue_dev"].texts[0] == first[0].strip() and rows["glue_dev"].labels[0] == int(first[1])


def test_fewer_training_rows_leave_dev_and_test_alone(tmp_path: Path) -> None:
    folder = str(write_tiny_task(tmp_path))
    everything = load_task(TaskConfig(name="sst2", source="glue", data_dir=folder)).splits
    part = load_task(TaskConfig(name="sst2", source="glue", data_dir=folder, max_train_rows=50)).splits
    assert len(part["train"]) == 50 and part["dev"] == everything["dev"] and part["glue_dev"] == everything["glue_dev"]
    assert Counter(part["train"].labels) == {0: 25, 1: 25}


def test_missing_sources_are_named() -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        source_files(TaskConfig(name="sst2", source="glue", data_dir="nowhere"))
    with pytest.raises(ConfigError, match="not a GLUE task"):
        source_files(TaskConfig(name="rotten_tomatoes", source="glue", data_dir="."))
    with pytest.raises(ConfigError, match="no package holds sst2"):
        source_files(TaskConfig(name="sst2", source="package"))


def test_length_batches_cover_every_row_once_in_a_new_order_every_epoch() -> None:
    lengths = np.random.default_rng(1).integers(1, 60, 1003)
    batches = LengthBatches(lengths, 16, shuffle=True, seed=3)
    first, second = list(batches), list(batches)
    assert len(first) == len(batches) and first != second
    assert sorted(row for batch in first for row in batch) == list(range(1003))
    assert list(LengthBatches(lengths, 16, shuffle=True, seed=3)) == first
    padding = sum(lengths[batch].max() * len(batch) for batch in first) / lengths.sum() - 1
    assert padding < 0.1  # in random batches it is about 0.9
    in_order = list(LengthBatches(lengths, 16, shuffle=False))
    assert sorted(row for batch in in_order for row in batch) == list(range(1003))


def test_ragged_positions_against_naive_loop() -> None:
    offsets = np.array([0, 3, 4, 9])
    positions, mask = ragged_positions(offsets, [2, 0])
    assert positions[mask].tolist() == [4, 5, 6, 7, 8, 0, 1, 2]
    assert mask.tolist() == [[True] * 5, [True] * 3 + [False] * 2]


def test_token_batches() -> None:
    data = TokenDataset(np.array([5, 6, 7, 8, 9, 10]), np.array([3, 1, 2]), [1, 0, 1])
    batch = data.__getitems__([1, 0])
    assert batch["input_ids"].tolist() == [[8, 0, 0], [5, 6, 7]]
    assert batch["mask"].tolist() == [[True, False, False], [True, True, True]]
    assert torch.equal(batch["labels"], torch.tensor([0, 1]))
