import json
import logging
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from tiny import WORDS, write_tiny_model
from transformers import AutoTokenizer

from nni_bertnas.config import CustomSettings, TaskSettings
from nni_bertnas.data.rows import Rows, label_order
from nni_bertnas.data.sources import SOURCES
from nni_bertnas.data.task_data import load_task, read_splits
from nni_bertnas.data.tasks import TASKS, task_spec
from nni_bertnas.data.tokens import tokenize
from nni_bertnas.errors import ConfigError

MNLI = (
    "index|promptID|pairID|genre|sentence1_binary_parse|sentence2_binary_parse|sentence1_parse|sentence2_parse"
    "|sentence1|sentence2|label1"
)
STSB = "index|genre|filename|year|old_index|source1|source2|sentence1|sentence2|score"
DIAGNOSTIC = "Lexical Semantics|Predicate-Argument Structure|Logic|Knowledge|Domain|Premise|Hypothesis|Label"
# Files as `download_glue_data.py` writes them, with | for a tab: per task its folder, the lines of every file, and the
# rows that must come out of every split: texts, second texts, labels.
GLUE: dict[str, tuple[str, dict[str, list[str]], dict[str, tuple[list[str], list[str] | None, list[float]]]]] = {
    "cola": (
        "CoLA",
        {
            "train.tsv": ["gj04|1||\"Our friends won't buy it.", "gj04|0|*|They drank the pub.", 'ks08|1||He left."'],
            "dev.tsv": ['gj04|0|*|"', "gj04|1||Sailors rode the breeze."],
        },
        {
            "train": (["\"Our friends won't buy it.", "They drank the pub.", 'He left."'], None, [1, 0, 1]),
            "glue_dev": (['"', "Sailors rode the breeze."], None, [0, 1]),
        },
    ),
    "sst2": (
        "SST-2",
        {
            "train.tsv": ["sentence|label", "\"it 's dull |0", "a charming journey |1", 'is "good" |1'],
            "dev.tsv": ["sentence|label", 'so-called " wit " |0', '"fun |1'],
        },
        {
            "train": (["\"it 's dull", "a charming journey", 'is "good"'], None, [0, 1, 1]),
            "glue_dev": (['so-called " wit "', '"fun'], None, [0, 1]),
        },
    ),
    "mrpc": (
        "MRPC",
        {
            "train.tsv": [
                "\ufeffQuality|#1 ID|#2 ID|#1 String|#2 String",
                '1|702876|702977|Amrozi called him " the witness " .|" The witness , he said .',
                "0|2108705|2108831|Yucaipa owned it .|Yucaipa bought it in 1995 .",
            ],
            "dev.tsv": ["\ufeffQuality|#1 ID|#2 ID|#1 String|#2 String", '0|1|2|"A .|B .', "1|3|4|C .|D ."],
        },
        {
            "train": (
                ['Amrozi called him " the witness " .', "Yucaipa owned it ."],
                ['" The witness , he said .', "Yucaipa bought it in 1995 ."],
                [1, 0],
            ),
            "glue_dev": (['"A .', "C ."], ["B .", "D ."], [0, 1]),
        },
    ),
    "qqp": (
        "QQP",
        {
            "train.tsv": [
                "id|qid1|qid2|question1|question2|is_duplicate",
                '133273|213221|213222|"How is life?|What is it like?|0',
                "402555|536040|536041|How do I start?|How can I start?|1",
            ],
            "dev.tsv": ["id|qid1|qid2|question1|question2|is_duplicate", "1|2|3|Why?|Why so?|1", '4|5|6|Who?|"Me?|0'],
        },
        {
            "train": (['"How is life?', "How do I start?"], ["What is it like?", "How can I start?"], [0, 1]),
            "glue_dev": (["Why?", "Who?"], ["Why so?", '"Me?'], [1, 0]),
        },
    ),
    "stsb": (
        "STS-B",
        {
            "train.tsv": [
                STSB,
                "0|main-captions|MSRvid|2012test|0001|none|none|A plane takes off.|An air plane takes off.|5.000",
                '1|main-news|headlines|2015|0002|none|none|"A man plays.|A man sings.|0.25',
            ],
            "dev.tsv": [STSB, "0|main-forums|deft|2014|0003|none|none|One.|Two.|3.8", "1|g|f|y|o|s|t|Three.|Four.|0"],
        },
        {
            "train": (["A plane takes off.", '"A man plays.'], ["An air plane takes off.", "A man sings."], [5, 0.25]),
            "glue_dev": (["One.", "Three."], ["Two.", "Four."], [3.8, 0]),
        },
    ),
    "mnli": (
        "MNLI",
        {
            "train.tsv": [
                f"{MNLI}|gold_label",
                "0|31193|31193n|government|( a )|( b )|(ROOT a)|(ROOT b)|Cream skimming.|Product.|neutral|neutral",
                '1|1|1e|telephone|( a )|( b )|(ROOT a)|(ROOT b)|"you know|You lose.|entailment|entailment',
                "2|2|2c|fiction|( a )|( b )|(ROOT a)|(ROOT b)|One.|None.|contradiction|contradiction",
            ],
            "dev_matched.tsv": [
                f"{MNLI}|label2|label3|label4|label5|gold_label",
                "0|6|6e|slate|x|x|x|x|New rights.|Rights.|neutral|entailment|neutral|neutral|entailment|contradiction",
            ],
            "dev_mismatched.tsv": [
                f"{MNLI}|label2|label3|label4|label5|gold_label",
                '0|7|7c|letters|x|x|x|x|Far.|"Near.|neutral|neutral|neutral|neutral|neutral|neutral',
                "1|8|8c|verbatim|x|x|x|x|Full.|Not empty.||||||entailment",
            ],
        },
        {
            "train": (["Cream skimming.", '"you know', "One."], ["Product.", "You lose.", "None."], [1, 0, 2]),
            "glue_dev_matched": (["New rights."], ["Rights."], [2]),
            "glue_dev_mismatched": (["Far.", "Full."], ['"Near.', "Not empty."], [1, 0]),
        },
    ),
    "qnli": (
        "QNLI",
        {
            "train.tsv": [
                "index|question|sentence|label",
                '0|When did it start?|"It started in 1300.|entailment',
                '1|"Who?|Nobody.|not_entailment',
            ],
            "dev.tsv": ["index|question|sentence|label", "0|What?|Rain.|not_entailment", "1|Where?|Here.|entailment"],
        },
        {
            "train": (["When did it start?", '"Who?'], ['"It started in 1300.', "Nobody."], [0, 1]),
            "glue_dev": (["What?", "Where?"], ["Rain.", "Here."], [1, 0]),
        },
    ),
    "rte": (
        "RTE",
        {
            "train.tsv": [
                "index|sentence1|sentence2|label",
                '0|"No weapons found.|Weapons found.|not_entailment',
                "1|A place of sorrow.|Sorrow.|entailment",
            ],
            "dev.tsv": ["index|sentence1|sentence2|label", '0|Dana died.|"Dana|entailment', "1|A.|B.|not_entailment"],
        },
        {
            "train": (['"No weapons found.', "A place of sorrow."], ["Weapons found.", "Sorrow."], [1, 0]),
            "glue_dev": (["Dana died.", "A."], ['"Dana', "B."], [0, 1]),
        },
    ),
    "wnli": (
        "WNLI",
        {
            "train.tsv": [
                "index|sentence1|sentence2|label",
                "0|I stuck a pin through a carrot. It had a hole.|The carrot had a hole.|1",
                '1|"John saw it.|It saw John.|0',
            ],
            "dev.tsv": ["index|sentence1|sentence2|label", "0|The drain is clogged.|The hair is.|0", '1|"C|D|1'],
        },
        {
            "train": (
                ["I stuck a pin through a carrot. It had a hole.", '"John saw it.'],
                ["The carrot had a hole.", "It saw John."],
                [1, 0],
            ),
            "glue_dev": (["The drain is clogged.", '"C'], ["The hair is.", "D"], [0, 1]),
        },
    ),
    "ax": (
        "diagnostic",
        {
            "diagnostic-full.tsv": [
                DIAGNOSTIC,
                '||Negation||Artificial|"The cat sat.|The cat did not sit.|contradiction',
                "Quantifiers|Core args|||News|All sat.|Some sat.|entailment",
                "|||World knowledge|Reddit|Some sat.|All sat.|neutral",
            ]
        },
        {
            "diagnostic": (
                ['"The cat sat.', "All sat.", "Some sat."],
                ["The cat did not sit.", "Some sat.", "All sat."],
                [2, 0, 1],
            )
        },
    ),
}
TRAINED = [name for name in GLUE if name != "ax"]


def write_lines(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(line.replace("|", "\t") + "\n" for line in lines).encode())


def write_glue(root: Path, name: str, train: int = 1, dev: int = 1) -> TaskSettings:
    """The task's files of the table, every row of train and dev so many times."""
    folder, files, _ = GLUE[name]
    for file, lines in files.items():
        first = 0 if name == "cola" else 1
        times = train if file == "train.tsv" else dev
        glue = TASKS[name].glue
        assert glue is not None
        columns = list(glue.header or lines[0].lstrip("\ufeff").split("|"))
        again = [line for time in range(times) for line in _renewed(lines[first:], columns, glue.texts, time)]
        write_lines(root / folder / file, lines[:first] + again)
    return TaskSettings(name=name, source="glue", data_dir=str(root))


def _renewed(lines: list[str], columns: list[str], texts: Sequence[str], time: int) -> list[str]:
    """The same rows with other texts."""
    places = [columns.index(name) for name in texts] if time else []
    rows = [line.split("|") for line in lines]
    return ["|".join(f"{cell} {time}" if n in places else cell for n, cell in enumerate(row)) for row in rows]


def counted(*parts: Rows) -> Counter[tuple[Any, ...]]:
    return Counter(row for part in parts for row in zip(part.texts, part.pairs or part.texts, part.labels, strict=True))


def own_task(
    train: Path, text_columns: tuple[str, ...] = ("text",), bad_rows: Any = "error", **own: Any
) -> TaskSettings:
    paths = {split: str(own.pop(split)) for split in ("dev", "test") if split in own}
    custom = CustomSettings(train=str(train), text_columns=list(text_columns), **paths, **own)
    return TaskSettings(name="custom", source="files", custom=custom, bad_rows=bad_rows)


def fingerprint(task: TaskSettings) -> list[str]:
    return SOURCES[task.source].fingerprint(task, task_spec(task))


def disk_task(folder: Path, **own: Any) -> TaskSettings:
    return TaskSettings(
        name="custom", source="disk", data_dir=str(folder), custom=CustomSettings(**{"text_columns": ["text"], **own})
    )


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    frame = pd.DataFrame(rows)
    if path.suffix in (".csv", ".tsv"):
        frame.to_csv(path, sep="\t" if path.suffix == ".tsv" else ",", index=False)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".parquet":
        frame.to_parquet(path)
    else:
        Dataset.from_list(rows).save_to_disk(path)
    return path


def write_text(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


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
