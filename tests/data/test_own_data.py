import logging
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from own_rows import disk_task, own_task, write_rows, write_text
from tiny import WORDS, write_tiny_model
from transformers import AutoTokenizer

from nni_bertnas.config import TaskSettings
from nni_bertnas.data.rows import Rows, label_order
from nni_bertnas.data.task_data import load_task, read_splits
from nni_bertnas.data.tokens import tokenize
from nni_bertnas.errors import ConfigError

TEXTS, SECOND = ['plain, "quoted"', "two\nlines", "é\u2028 😀", "tab\there"], ["a", '"b', "c", "d"]


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl", ".parquet", "disk"])
@pytest.mark.parametrize(
    ("columns", "kind", "labels", "names", "numbers"),
    [
        (("text",), "classification", ["good", "bad", "bad", "good"], ("bad", "good"), [1, 0, 0, 1]),
        (("first", "second"), "classification", [10, 2, 2, 3], ("2", "3", "10"), [2, 0, 0, 1]),
        (("first", "second"), "regression", [0.5, -1.25, 3.0, 1e-3], (), [0.5, -1.25, 3.0, 1e-3]),
    ],
)
def test_own_data(
    tmp_path: Path,
    ending: str,
    columns: tuple[str, ...],
    kind: str,
    labels: list[Any],
    names: tuple[str, ...],
    numbers: list[float],
) -> None:
    cells = zip(TEXTS, SECOND, labels, strict=True)
    rows = [{**dict(zip(columns, texts, strict=False)), "grade": label, "id": 7} for *texts, label in cells]
    own = {"text_columns": columns, "label_column": "grade", "kind": kind}
    if ending == "disk":
        task = disk_task(write_rows(tmp_path / "saved", rows), **{**own, "text_columns": list(columns)})
    else:
        task = own_task(write_rows(tmp_path / f"train{ending}", rows), **own)
    pairs = SECOND if len(columns) == 2 else None
    assert read_splits(task) == (names, {"train": Rows(TEXTS, numbers, pairs)})


def test_literal_quotes_of_own_data(tmp_path: Path) -> None:
    path = write_text(tmp_path / "train.tsv", 'text\tlabel\n"a\tx\n"b"\ty\nc\tx\n')
    assert read_splits(own_task(path, quotes="literal"))[1]["train"].texts == ['"a', '"b"', "c"]


def test_one_label_in_several_spellings_and_files(tmp_path: Path) -> None:
    task = own_task(
        write_rows(tmp_path / "train.jsonl", [{"text": "t", "label": label} for label in (10, 1.0, "1", 2, "10")]),
        dev=write_rows(tmp_path / "dev.parquet", [{"text": "t", "label": label} for label in (1.0, 10.0)]),
        test=write_rows(tmp_path / "test.csv", [{"text": "t", "label": label} for label in (" 2 ", "1")]),
    )
    names, splits = read_splits(task)
    assert names == ("1", "2", "10")
    assert {split: rows.labels for split, rows in splits.items()} == {
        "train": [2, 0, 0, 1, 2],
        "dev": [0, 2],
        "test": [1, 0],
    }


@pytest.mark.parametrize(
    ("labels", "order"),
    [
        (["10", "9", "-1", "9"], ("-1", "9", "10")),
        (["0.5", "0.25", "1"], ("0.25", "0.5", "1")),
        (["b", "a", "10", "9"], ("10", "9", "a", "b")),
        (["2", "1", "01"], ("01", "1", "2")),
        (["nan", "2", "1"], ("1", "2", "nan")),
    ],
)
def test_labels_are_ordered_by_value_or_by_alphabet(labels: list[str], order: tuple[str, ...]) -> None:
    assert label_order(labels) == order


def test_named_labels_keep_their_order_even_where_a_file_lacks_one(tmp_path: Path) -> None:
    path = write_text(tmp_path / "train.csv", "text,label\nx,alpha\ny,Beta\n")
    names, splits = read_splits(own_task(path, labels=["beta", "gamma", "alpha"]))
    assert names == ("beta", "gamma", "alpha") and splits["train"].labels == [2, 0]


@pytest.mark.parametrize("dev", ["validation", "dev"])
def test_a_saved_dataset_keeps_its_splits_and_label_names(tmp_path: Path, dev: str) -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["yes", "no"])})
    parts = {"train": [1, 0, 1], dev: [0], "test": [1], "other": [0]}
    DatasetDict(
        {
            split: Dataset.from_dict({"text": [split] * len(labels), "label": labels}, features=features)
            for split, labels in parts.items()
        }
    ).save_to_disk(tmp_path / "saved")
    names, splits = read_splits(disk_task(tmp_path / "saved"))
    assert names == ("yes", "no")
    assert splits == {
        "train": Rows(["train"] * 3, [1, 0, 1]),
        "dev": Rows([dev], [0]),
        "test": Rows(["test"], [1]),
    }
    assert load_task(disk_task(tmp_path / "saved")).splits == splits


@pytest.mark.parametrize(
    ("train", "own", "message"),
    [
        ("text,label\na,0\n", {"text_columns": ("review",)}, r"train\.csv:2: no column review; there are text, label$"),
        ("text,label\na,0\n", {"label_column": "mark"}, r"train\.csv:2: no column mark; there are text, label$"),
        ('text,label\n"a\nb",0\nb\n', {}, r"train\.csv:4: must have 2 fields as the header has, has 1; .*skip"),
        ("text,label\na,0\n ,1\n", {}, r"train\.csv:3: text is empty; mend the row, or .*task\.bad_rows: skip"),
        ("a,b,label\nx,,0\n", {"text_columns": ("a", "b")}, r"train\.csv:2: b is empty"),
        ("text,label\na,0\nb, \n", {}, r"train\.csv:3: label is empty"),
        ("text,label\na,bad\n", {"kind": "regression"}, r"train\.csv:2: label must be a number, got 'bad'"),
        ("text,label\na,1\nb,nan\n", {"kind": "regression"}, r"train\.csv:3: label must be a number, got 'nan'"),
        ("text,label\na,inf\n", {"kind": "regression"}, r"train\.csv:2: label must be a number, got 'inf'"),
        ("text,label\na,x\nb,z\n", {"labels": ["x", "y"]}, r"train\.csv:3: the label 'z' in train is none of x, y; .*"),
        ("text,label\na,A\nb,a\n", {}, r"of the labels A, a two differ in case, spaces or hyphens alone"),
        ("text,label\na,1\nb,1\n", {}, r"train has one label, 1; a classifier needs two"),
        ("text,label\na,1\nb,2\nc,3\n", {"metric": "f1"}, r"f1 is for two labels, there are 3; take f1_macro"),
        ("text,label\n", {}, r"the split train has no rows"),
        ("", {}, r"train\.csv is empty"),
    ],
)
def test_damaged_own_data_is_one_clear_error(tmp_path: Path, train: str, own: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_splits(own_task(write_text(tmp_path / "train.csv", train), **own))


def test_texts_that_are_no_text_are_named(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "train.jsonl", [{"text": "a", "label": 0}, {"text": 5, "label": 1}])
    with pytest.raises(ConfigError, match=r"train\.jsonl:2: text must be text, got \[5\]"):
        read_splits(own_task(path))
    path.write_text('{"text": "a", "label": 0}\n{"text": "b\\ud800", "label": 1}\n')
    with pytest.raises(ConfigError, match=r"train\.jsonl:2: text is not valid Unicode"):
        read_splits(own_task(path))
    path.write_text('{"text": "a", "label": 0}\n{"text": "b", "label": NaN}\n')
    with pytest.raises(ConfigError, match=r"train\.jsonl:2: label is empty"):
        read_splits(own_task(path))


def test_unseen_labels_and_empty_splits_of_dev_are_named(tmp_path: Path) -> None:
    train = write_text(tmp_path / "train.csv", "text,label\na,x\nb,y\n")
    with pytest.raises(ConfigError, match=r"dev\.csv:3: the label 'z' in dev is none of x, y; .*task\.custom\.labels"):
        read_splits(own_task(train, dev=write_text(tmp_path / "dev.csv", "text,label\na,x\nb,z\n")))
    with pytest.raises(ConfigError, match="the split dev has no rows"):
        read_splits(own_task(train, dev=write_text(tmp_path / "dev.csv", "text,label\n")))
    with pytest.raises(ConfigError, match=r"task\.custom\.dev: .*none\.csv does not exist"):
        read_splits(own_task(train, dev=tmp_path / "none.csv"))


def test_missing_training_rows_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"task\.custom\.train: .*none\.csv does not exist"):
        read_splits(own_task(tmp_path / "none.csv"))
    with pytest.raises(ConfigError, match=r"nowhere \(custom\) cannot be loaded"):
        read_splits(disk_task(tmp_path / "nowhere"))
    rows = [{"text": "a", "label": 0}]
    DatasetDict(other=Dataset.from_list(rows)).save_to_disk(tmp_path / "saved")
    with pytest.raises(ConfigError, match=r"saved has no split train; it has \['other'\]"):
        read_splits(disk_task(tmp_path / "saved"))
    rows = [{"sentence": "a", "label": 0}]
    DatasetDict(train=Dataset.from_list(rows)).save_to_disk(tmp_path / "sst2")
    with pytest.raises(ConfigError, match=r"sst2 has no split validation; it has \['train'\]"):
        read_splits(TaskSettings(name="sst2", source="disk", data_dir=str(tmp_path / "sst2")))
    rows = [{"text": "a", "label": 0}]
    Dataset.from_list(rows).save_to_disk(tmp_path / "plain")
    with pytest.raises(ConfigError, match=r"plain, train, row 0: no column body; there are text, label"):
        read_splits(disk_task(tmp_path / "plain", text_columns=["body"]))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("x" * 20 + "y", "the label.* y have one row in train"),
        ("xyxy", "4 different rows with 2 labels are too few"),
    ],
)
def test_labels_too_rare_to_hold_out_are_named(tmp_path: Path, labels: str, message: str) -> None:
    path = write_rows(tmp_path / "train.csv", [{"text": f"t{n}", "label": label} for n, label in enumerate(labels)])
    with pytest.raises(ConfigError, match=message):
        load_task(own_task(path))


@pytest.mark.parametrize(("given", "held_out"), [((), 10), (("dev",), 10), (("dev", "test"), 0)])
def test_what_own_data_lacks_is_held_out_of_train(tmp_path: Path, given: tuple[str, ...], held_out: int) -> None:
    train = [{"text": f"t{number}", "label": number % 2} for number in range(100)]
    files = {
        split: write_rows(tmp_path / f"{split}.jsonl", [{"text": split, "label": 1}, {"text": split, "label": 0}])
        for split in given
    }
    splits = load_task(own_task(write_rows(tmp_path / "train.jsonl", train), **files)).splits
    for split in ("dev", "test"):
        rows = splits[split]
        assert rows == Rows([split] * 2, [1, 0]) if split in given else Counter(rows.labels) == {0: 5, 1: 5}
    own = [rows for split, rows in splits.items() if split not in given]
    assert len(splits["train"]) == 100 - held_out * (2 - len(given))
    assert sorted(text for rows in own for text in rows.texts) == sorted(row["text"] for row in train)


def test_skipped_rows_are_counted_but_a_missing_column_still_fails(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_text(tmp_path / "train.csv", 'text,label\na,x\nb\n"c\nd",y\n ,x\ne,\nf,x,1\n')
    with caplog.at_level(logging.WARNING):
        _, splits = read_splits(own_task(path, bad_rows="skip"))
    assert splits["train"] == Rows(["a", "c\nd"], [0, 1])
    (record,) = [record for record in caplog.records if record.name == "nni_bertnas.data.rows"]
    message = record.getMessage()
    assert message.startswith("4 damaged row(s) left out")
    for line in ("3: must have 2", "6: text is empty", "7: label is empty", "8: must have 2"):
        assert f"train.csv:{line}" in message
    with pytest.raises(ConfigError, match="no column review; there are text, label"):
        read_splits(own_task(path, ("review",), bad_rows="skip"))


def test_long_texts_are_cut_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = AutoTokenizer.from_pretrained(write_tiny_model(tmp_path / "model"))
    lengths = [3, 6, 7, 20]  # with [CLS] and [SEP], 5, 8, 9, 22 word pieces
    rows = Rows([" ".join(WORDS[:length]) for length in lengths], [0, 1, 0, 1])
    with caplog.at_level(logging.WARNING):
        data = tokenize(tokenizer, rows, 8)
    assert data.lengths.tolist() == [5, 8, 8, 8] and data.labels.tolist() == rows.labels
    assert "2 of 4 texts were cut to task.max_length = 8 word pieces" in caplog.text
    first = tokenizer.convert_tokens_to_ids(["[CLS]", *WORDS[:6], "[SEP]"])
    assert data.tokens[data.offsets[3] :].tolist() == first


def test_of_a_pair_the_longer_text_is_cut_first(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = AutoTokenizer.from_pretrained(write_tiny_model(tmp_path / "model"))
    rows = Rows(["qaa " * 9, "qaa", "qaa"], [0.5, 1.0, 0.0], ["qab qab", "qab " * 9, "qab"])
    data = tokenize(tokenizer, rows, 10)
    batch = data.batch([0, 1, 2])
    assert tokenizer.batch_decode(batch.input_ids) == [
        "[CLS] qaa qaa qaa qaa qaa [SEP] qab qab [SEP]",
        "[CLS] qaa [SEP] qab qab qab qab qab qab [SEP]",
        "[CLS] qaa [SEP] qab [SEP]" + " [PAD]" * 5,
    ]
    assert batch.token_type_ids.tolist() == [[0] * 7 + [1] * 3, [0] * 3 + [1] * 7, [0, 0, 0, 1, 1] + [0] * 5]
    assert batch.labels.dtype.is_floating_point and "2 of 3 texts were cut" in caplog.text


def test_texts_within_the_limit_log_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = AutoTokenizer.from_pretrained(write_tiny_model(tmp_path / "model"))
    assert tokenize(tokenizer, Rows(["qaa " * 6], [0]), 8).lengths.tolist() == [8]
    assert not caplog.records


@pytest.mark.parametrize("name", ["validation", "dev", "valid", "val", "eval"])
def test_a_held_out_split_is_found_by_any_of_its_names(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def part(first: int, count: int) -> Dataset:
        return Dataset.from_list([{"text": f"t{first + n}", "label": "ab"[n % 2]} for n in range(count)])

    splits = {"train": part(0, 120), name: part(200, 20), "test": part(300, 10), "extra": part(400, 5)}
    DatasetDict(splits).save_to_disk(tmp_path / "saved")
    with caplog.at_level("WARNING"):
        data = load_task(disk_task(tmp_path / "saved"))
    assert {split: len(rows) for split, rows in data.splits.items()} == {"train": 120, "dev": 20, "test": 10}
    assert "the split(s) extra are not used, those used are train: train, " in caplog.text
    assert f"dev: {name}" in caplog.text
