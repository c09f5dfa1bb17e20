import os
from pathlib import Path

import pandas as pd
import pytest
from glue_rows import GLUE, TRAINED, counted, write_glue, write_lines
from own_rows import fingerprint

from nni_bertnas.config import TaskSettings
from nni_bertnas.data.rows import Rows
from nni_bertnas.data.task_data import load_task, read_splits
from nni_bertnas.data.tasks import TASKS
from nni_bertnas.errors import ConfigError


@pytest.mark.parametrize("name", GLUE)
def test_glue_rows_come_out_as_they_stand(tmp_path: Path, name: str) -> None:
    names, splits = read_splits(write_glue(tmp_path, name))
    assert names == TASKS[name].label_names
    assert {split: (rows.texts, rows.pairs, rows.labels) for split, rows in splits.items()} == GLUE[name][2]


@pytest.mark.parametrize("name", TRAINED)
def test_glue_dev_files_stay_whole_and_a_part_of_train_becomes_dev(tmp_path: Path, name: str) -> None:
    task = write_glue(tmp_path, name, train=40, dev=3)
    read, data = read_splits(task)[1], load_task(task)
    finals = [split for split in GLUE[name][2] if split != "train"]
    assert data.final_splits == finals and all(data.splits[split] == read[split] for split in finals)
    train, dev = data.splits["train"], data.splits["dev"]
    assert counted(train, dev) == counted(read["train"])
    assert len(dev) == len(read[finals[0]]) < len(read["train"]) / 10


def test_the_diagnostic_set_cannot_be_trained_on(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ax has no training rows; train on mnli"):
        load_task(write_glue(tmp_path, "ax"))


@pytest.mark.parametrize("spelling", ["name", "number", "shouted"])
@pytest.mark.parametrize("name", [name for name in GLUE if TASKS[name].label_names])
def test_both_spellings_of_glue_labels_give_the_same_numbers(tmp_path: Path, name: str, spelling: str) -> None:
    glue, names = TASKS[name].glue, TASKS[name].label_names
    assert glue is not None
    columns = glue.header or (*glue.texts, glue.label)
    for file in (glue.train, *glue.dev.values()):
        lines = [] if glue.header else ["|".join(columns)]
        for number, label in enumerate(names):
            cell = {"name": label, "number": str(number), "shouted": label.upper().replace("_", " ")}[spelling]
            lines.append("|".join(cell if column == glue.label else "words" for column in columns))
        write_lines(tmp_path / glue.folder / (file or "none"), lines)
    _, splits = read_splits(TaskSettings(name=name, source="glue", data_dir=str(tmp_path)))
    assert [rows.labels for rows in splits.values()] == [list(range(len(names)))] * len(splits)


@pytest.mark.parametrize(
    ("name", "train", "dev"),
    [
        ("cola", 8551, 1043),
        ("sst2", 67349, 872),
        ("mrpc", 3668, 408),
        ("stsb", 5749, 1500),
        ("rte", 2490, 277),
        ("wnli", 635, 71),
    ],
)
@pytest.mark.glue
@pytest.mark.skipif("BERTNAS_GLUE_DIR" not in os.environ, reason="BERTNAS_GLUE_DIR names no folder of GLUE data")
def test_official_files_have_the_official_row_counts(name: str, train: int, dev: int) -> None:
    names, splits = read_splits(TaskSettings(name=name, source="glue", data_dir=os.environ["BERTNAS_GLUE_DIR"]))
    assert {split: len(rows) for split, rows in splits.items()} == {"train": train, "glue_dev": dev}
    for rows in splits.values():
        assert all(0 <= label <= 5 for label in rows.labels) if not names else set(rows.labels) == {0, 1}


@pytest.fixture
def glue_clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as a clone of nyu-mll/glue, with RTE alone."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    clone = tmp_path / "glue"
    (clone / "rte").mkdir(parents=True)
    for split, labels in (("train", [1, 0, 1]), ("validation", [0, 1]), ("test", [-1])):
        numbers = range(len(labels))
        columns = {name: [f"{split} {name} {number}" for number in numbers] for name in ("sentence1", "sentence2")}
        frame = pd.DataFrame({**columns, "label": labels, "idx": list(numbers)})
        frame.to_parquet(clone / "rte" / f"{split}-00000-of-00001.parquet")
    files = "".join(f"  - split: {split}\n    path: rte/{split}-*\n" for split in ("train", "validation", "test"))
    (clone / "README.md").write_text(f"---\nconfigs:\n- config_name: rte\n  data_files:\n{files}---\n")
    return clone


def test_a_clone_of_the_hubs_glue(glue_clone: Path) -> None:
    names, splits = read_splits(TaskSettings(name="rte", source="hub", data_dir=str(glue_clone)))
    assert names == ("entailment", "not_entailment")
    assert splits == {
        "train": Rows(
            [f"train sentence1 {number}" for number in range(3)],
            [1, 0, 1],
            [f"train sentence2 {number}" for number in range(3)],
        ),
        "glue_dev": Rows(
            ["validation sentence1 0", "validation sentence1 1"],
            [0, 1],
            ["validation sentence2 0", "validation sentence2 1"],
        ),
    }
    with pytest.raises(ConfigError, match=r"glue \(mrpc\) cannot be loaded: .*mrpc"):
        read_splits(TaskSettings(name="mrpc", source="hub", data_dir=str(glue_clone)))


def test_a_changed_clone_is_read_anew(glue_clone: Path) -> None:
    task = TaskSettings(name="rte", source="hub", data_dir=str(glue_clone))
    before, mark = read_splits(task)[1]["train"], fingerprint(task)
    file = glue_clone / "rte" / "train-00000-of-00001.parquet"
    frame = pd.read_parquet(file)
    frame.assign(sentence1=frame["sentence1"].str.upper()).to_parquet(file)
    assert read_splits(task)[1]["train"].texts == [text.upper() for text in before.texts]
    assert fingerprint(task) != mark
