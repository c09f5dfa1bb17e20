import math
import tracemalloc
from pathlib import Path

import datasets
import pytest

from nni_bertnas.config import TaskSettings, TransferSettings
from nni_bertnas.data.rows import UNLABELLED, Rows
from nni_bertnas.data.task_data import load_task
from nni_bertnas.data.transfer import load_transfer, transfer_fingerprint
from nni_bertnas.errors import ConfigError

SST2, STSB = TaskSettings(name="sst2", source="glue"), TaskSettings(name="stsb", source="glue")

SPLITS = {"train": Rows(["one", "two"], [0, 1]), "dev": Rows(["three"], [1])}


def loaded(settings: TransferSettings, task: TaskSettings, splits: dict[str, Rows]) -> Rows:
    first, *rest = load_transfer(settings, task, splits)
    return sum(rest, first)


def test_reviews_are_unlabelled_new_sentences_and_a_fixed_choice() -> None:
    splits = load_task(TaskSettings()).splits
    few, more = (loaded(TransferSettings(reviews=count), TaskSettings(), splits) for count in (50, 80))
    assert (len(few), len(more)) == (50, 80) and few.texts == more.texts[:50]
    assert set(more.labels) == {UNLABELLED} and len(set(more.texts)) == 80
    assert not set(more.texts) & {text for part in splits.values() for text in part.texts}
    assert all(8 <= len(text.split()) <= 40 for text in more.texts)
    with pytest.raises(ConfigError, match=r"transfer.reviews must be at most"):
        loaded(TransferSettings(reviews=10_000_000), TaskSettings(), splits)


def test_files_without_labels_give_what_is_new(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.txt").write_text("\ufefffour\n\n two \nfive\r\nfour\n")
    (tmp_path / "b.csv").write_text("text,sentence\nx,six\ny,five\n")
    settings = TransferSettings(files=[str(tmp_path / "a.txt"), str(tmp_path / "b.csv")])
    with caplog.at_level("INFO", logger="nni_bertnas"):
        rows = loaded(settings, SST2, SPLITS)
    assert rows.texts == ["four", "five", "six"] and set(rows.labels) == {UNLABELLED} and rows.pairs is None
    assert "4 rows without labels" in caplog.text and "a.txt, 2 of them new" in caplog.text
    marks = transfer_fingerprint(settings, SST2)
    (tmp_path / "b.csv").write_text("text,sentence\nx,six\n")
    assert transfer_fingerprint(settings, SST2) != marks
    some = loaded(TransferSettings(files=settings.files[:1], max_rows=1), SST2, {})
    assert len(some) == 1
    (tmp_path / "b.csv").write_text("text\nx\n")
    with pytest.raises(ConfigError, match=r"b.csv.*no column sentence"):
        loaded(settings, SST2, SPLITS)
    with pytest.raises(ConfigError, match=r"transfer.files: nothere.txt does not exist"):
        transfer_fingerprint(TransferSettings(files=["nothere.txt"]), SST2)


def test_single_texts_of_a_task_of_pairs_have_no_second(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("four\n")
    (tmp_path / "b.jsonl").write_text('{"sentence1": "six", "sentence2": "seven"}\n')
    files = [str(tmp_path / name) for name in ("a.txt", "b.jsonl")]
    rows = loaded(TransferSettings(files=files), STSB, {})
    assert rows.texts == ["four", "six"] and rows.pairs == ["", "seven"]
    assert all(math.isnan(label) for label in rows.labels)


def test_other_splits_of_a_source(tmp_path: Path) -> None:
    (tmp_path / "SST-2").mkdir()
    (tmp_path / "SST-2" / "test.tsv").write_text('index\tsentence\n0\tfour "five\n1\tone\n')
    glue = TaskSettings(name="sst2", source="glue", data_dir=str(tmp_path))
    settings = TransferSettings(splits=["test"])
    assert loaded(settings, glue, SPLITS).texts == ['four "five']
    marks = transfer_fingerprint(settings, glue)
    (tmp_path / "SST-2" / "test.tsv").write_text("index\tsentence\n0\tsix\n")
    assert transfer_fingerprint(settings, glue) != marks
    with pytest.raises(ConfigError, match=r"transfer.splits must be among test, got dev"):
        transfer_fingerprint(TransferSettings(splits=["dev"]), glue)
    parts = {"train": ["one"], "validation": ["three"], "unsupervised": ["seven", "one"]}
    whole = datasets.DatasetDict(
        {name: datasets.Dataset.from_dict({"sentence": texts}) for name, texts in parts.items()}
    )
    whole.save_to_disk(str(tmp_path / "disk"))
    disk = TaskSettings(name="sst2", source="disk", data_dir=str(tmp_path / "disk"))
    assert loaded(TransferSettings(splits=["unsupervised"]), disk, SPLITS).texts == ["seven"]
    with pytest.raises(ConfigError, match=r"transfer.splits must be among unsupervised of .*, got validation"):
        loaded(TransferSettings(splits=["validation"]), disk, SPLITS)
    with pytest.raises(ConfigError, match=r"task.source package has no splits beside those of the task"):
        loaded(settings, TaskSettings(), SPLITS)


def test_a_part_of_a_large_file_takes_little_memory(tmp_path: Path) -> None:
    with (tmp_path / "a.txt").open("w") as file:
        for number in range(300_000):
            file.write(f"text number {number} of a file that nobody would want to hold in memory as a whole\n")
    few, more = (TransferSettings(files=[str(tmp_path / "a.txt")], max_rows=count) for count in (100, 2_000))
    tracemalloc.start()
    some = loaded(more, SST2, {}).texts
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    numbers = [int(text.split()[2]) for text in some]
    assert len(some) == 2_000 and numbers == sorted(numbers) and 130_000 < sum(numbers) / 2_000 < 170_000
    assert set(loaded(few, SST2, {}).texts) < set(some)
    assert peak < 12e6 < (tmp_path / "a.txt").stat().st_size
