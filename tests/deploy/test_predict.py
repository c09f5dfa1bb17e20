import importlib
import io
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console
from tiny import WORDS, tiny_run, write_tiny_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from nni_bertnas.cli import main
from nni_bertnas.data.tasks import TASKS
from nni_bertnas.deploy import FORMATS
from nni_bertnas.deploy.glue_submission import GLUE_FILES
from nni_bertnas.report.data import show_data
from nni_bertnas.stages.run import Run
from nni_bertnas.study_files import parse_study


def write_model(folder: Path, task: str) -> Path:
    """A classifier as a study of a GLUE task would save it, untrained."""
    spec = TASKS[task]
    write_tiny_model(folder)
    names = dict(enumerate(spec.label_names or ("score",)))
    torch.manual_seed(1)
    model = AutoModelForSequenceClassification.from_pretrained(
        folder, id2label=names, label2id={name: number for number, name in names.items()}
    )
    model.classifier.weight.data.normal_()  # so that not every row gets the same label
    model.config.bertnas_task = {"name": task, "texts": list(spec.texts), "max_length": 16}
    model.save_pretrained(folder)
    return folder


def table(count: int, columns: list[str], seed: int = 0) -> list[dict]:
    generator = np.random.default_rng(seed)
    return [
        {name: " ".join(generator.choice(WORDS, 5)) for name in columns} | {"id": number} for number in range(count)
    ]


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_predictions_are_the_models_own_in_the_files_order(built: Run, tmp_path: Path, ending: str) -> None:
    rows = table(100, ["sentence"])
    rows[3]["sentence"] = 'qaa, "qab"\tqac é'
    frame = pd.DataFrame(rows)
    source, target = tmp_path / f"in{ending}", tmp_path / f"out{ending}"
    if ending in (".csv", ".tsv"):
        frame.to_csv(source, index=False, sep="\t" if ending == ".tsv" else ",")
    elif ending == ".jsonl":
        frame.to_json(source, orient="records", lines=True)
    else:
        frame.to_parquet(source)
    folder = built.folder("teacher")
    assert main(["predict", str(folder), str(source), "--output", str(target)]) == 0
    read = {
        ".csv": pd.read_csv,
        ".tsv": lambda path: pd.read_csv(path, sep="\t"),
        ".jsonl": lambda path: pd.read_json(path, lines=True),
        ".parquet": pd.read_parquet,
    }
    found = read[ending](target)
    assert found["sentence"].tolist() == frame["sentence"].tolist() and found["id"].astype(int).tolist() == list(
        range(100)
    )
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for number in (0, 3, 99):
        encoded = tokenizer(rows[number]["sentence"], return_tensors="pt", truncation=True, max_length=32)
        with torch.inference_mode():
            live = model(**encoded).logits.softmax(-1)[0].numpy()
        stored = found.loc[number, ["probability_negative", "probability_positive"]].to_numpy(float)
        np.testing.assert_allclose(stored, live, atol=1e-5)
        assert found.loc[number, "prediction"] == ("negative", "positive")[live.argmax()]
    assert len(set(found["prediction"])) == 2


def test_bad_prediction_files_are_refused_by_line(
    built: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, source = str(built.folder("teacher")), tmp_path / "in.csv"

    def error(text: str, *options: str) -> str:
        source.write_text(text)
        assert main(["predict", folder, str(source), *options]) != 0
        return capsys.readouterr().err

    assert "no column sentence; there are text" in error("text\nqaa\n")
    assert f"{source}:3: sentence is empty" in error("sentence,x\nqaa,1\n ,2\n")
    assert f"{source}:2: must have 1 fields" in error("sentence\nqaa,1\n")
    assert "has no rows" in error("sentence\n")
    assert "has a column prediction already" in error("sentence,prediction\nqaa,1\n")
    assert "must end in one of" in error("sentence\nqaa\n", "--output", str(tmp_path / "out.doc"))
    assert "takes no --output" in error("sentence\nqaa\n", "--glue-submission", "x.zip", "--output", "y.csv")
    assert main(["predict", str(tmp_path), str(source)]) != 0
    assert "holds no config.json" in capsys.readouterr().err


def test_a_foreign_model_is_told_its_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_model(tmp_path / "model", "rte")
    config = json.loads((folder / "config.json").read_text())
    del config["bertnas_task"]
    (folder / "config.json").write_text(json.dumps(config))
    source = tmp_path / "in.jsonl"
    source.write_text("\n".join(json.dumps(row) for row in table(3, ["one", "two"])))
    assert main(["predict", str(folder), str(source)]) != 0
    assert "--columns" in capsys.readouterr().err
    assert main(["predict", str(folder), str(source), "--columns", "one", "two"]) == 0
    assert len(pd.read_csv(tmp_path / "in.predictions.csv")) == 3


def write_test_file(root: Path, task: str) -> dict[str, int]:
    """GLUE's test files of a task: no labels, an index that does not start at 0."""
    glue, written = TASKS[task].glue, {}
    for number, (name, file) in enumerate(glue.test.items()):
        texts = glue.test_texts or glue.texts
        path = root / glue.folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = table(7 + number, list(texts), number)
        index = "id" if task == "qqp" else "index"
        lines = ["\t".join([index, *texts])]
        lines += ["\t".join([str(row["id"] + 10), *(f'"{row[text]}' for text in texts)]) for row in rows]
        path.write_text("\n".join(lines) + "\n")
        written[f"{name}.tsv"] = len(rows)
    return written


SPELLINGS = {
    **{key: {"0", "1"} for key in ["CoLA", "SST-2", "MRPC", "QQP", "WNLI"]},
    **{key: {"entailment", "neutral", "contradiction"} for key in ["MNLI-m", "MNLI-mm", "AX"]},
    **{key: {"entailment", "not_entailment"} for key in ["QNLI", "RTE"]},
}


def test_the_submission_of_all_tasks_is_one_zip(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target, root = tmp_path / "submission.zip", tmp_path / "glue"
    counts = write_test_file(root, "ax")
    for task, spec in TASKS.items():
        if spec.glue and task != "ax":
            counts |= write_test_file(root, task)
            model = write_model(tmp_path / task, task)
            assert main(["predict", str(model), str(root), "--glue-submission", str(target)]) == 0
            said = capsys.readouterr().out
    assert "it is complete" in said
    with zipfile.ZipFile(target) as archive:
        assert sorted(archive.namelist()) == sorted(f"{name}.tsv" for name in GLUE_FILES) == sorted(counts)
        for name in archive.namelist():
            header, *lines = archive.read(name).decode().splitlines()
            rows = [line.split("\t") for line in lines]
            assert header == "index\tprediction" and len(rows) == counts[name]
            assert [row[0] for row in rows] == [str(number + 10) for number in range(len(rows))]
            if name == "STS-B.tsv":
                assert all(0 <= float(row[1]) <= 5 for row in rows)
            else:
                assert {row[1] for row in rows} <= SPELLINGS[name.removesuffix(".tsv")]


def test_submission_numbers_go_by_the_tasks_order_whatever_the_models(tmp_path: Path) -> None:
    write_test_file(tmp_path, "wnli")
    found = []
    for turned in (False, True):
        folder = write_model(tmp_path / f"model{turned}", "wnli")
        if turned:  # the same model with its outputs the other way round
            model = AutoModelForSequenceClassification.from_pretrained(folder)
            for parameter in model.classifier.parameters():
                parameter.data = parameter.data.flip(0)
            model.config.id2label = {0: "entailment", 1: "not_entailment"}
            model.save_pretrained(folder)
        target = tmp_path / f"{turned}.zip"
        assert main(["predict", str(folder), str(tmp_path), "--glue-submission", str(target)]) == 0
        with zipfile.ZipFile(target) as archive:
            found.append(archive.read("WNLI.tsv"))
    assert found[0] == found[1]


def test_no_submission_for_own_data(built: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "model"
    shutil.copytree(built.folder("teacher"), folder)
    config = json.loads((folder / "config.json").read_text())
    config["bertnas_task"]["name"] = "custom"
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "checksums.json").unlink()  # as it is changed on purpose
    assert main(["predict", str(folder), str(tmp_path), "--glue-submission", str(tmp_path / "x.zip")]) != 0
    assert "not one of GLUE's" in capsys.readouterr().err


def test_data_shows_rows_balance_lengths_and_what_the_model_sees(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, task={"max_length": 8})
    console = Console(width=120, record=True, file=io.StringIO())
    show_data(run, console)
    text = console.export_text()
    assert "216" in text and "108 (50.0%)" in text and "rows will be cut to task.max_length = 8" in text
    lines = [line for line in text.splitlines() if "[CLS]" in line]
    assert len(lines) == 3 and all(line.split(": ")[0].strip() in ("positive", "negative") for line in lines)
    assert {line.split(": ")[0].strip() for line in lines} == {"positive", "negative"}
    assert all(len(line.split(": ")[1].split()) <= 8 and line.endswith("[SEP]") for line in lines)


def test_data_of_scores_and_pairs(tmp_path: Path) -> None:
    fields = {"name": "own", "teacher": {"model": str(write_tiny_model(tmp_path / "model"))}}
    rows = [{"a": "qaa qab", "b": WORDS[number], "score": number / 4} for number in range(40)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    custom = {
        "train": str(tmp_path / "rows.jsonl"),
        "text_columns": ["a", "b"],
        "label_column": "score",
        "kind": "regression",
    }
    run = Run(parse_study({**fields, "task": {"name": "custom", "source": "files", "custom": custom}}))
    console = Console(width=120, record=True, file=io.StringIO())
    show_data(run, console)
    text = console.export_text()
    assert "[CLS] qaa qab [SEP] q" in text and "highest score" in text and "6 to 6" in text


def test_a_saved_student_is_exported_whole_or_not_at_all(
    built: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = built.folder("teacher"), tmp_path / "out"
    assert main(["export", str(source), "--to", "hf", "--output", str(target)]) == 0
    assert "as hf" in capsys.readouterr().out
    for folder in (source, target):
        model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        tokens = AutoTokenizer.from_pretrained(folder)("qaa qab", return_tensors="pt")
        if folder == source:
            expected = model(**tokens).logits
    assert torch.equal(model(**tokens).logits, expected) and model.config.bertnas_task["name"] == "sst2"
    for wrong, message in (
        ([str(source), "--to", "hf", "--output", str(target)], "is there already"),
        ([str(tmp_path), "--to", "hf", "--output", str(tmp_path / "new")], "holds no model"),
    ):
        assert main(["export", *wrong]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    assert main(["export", str(source), "--to", "hf", "--output", "."]) == 2
    assert "must not be the folder" in capsys.readouterr().err and empty.is_dir()


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_has_an_exporter(name: str) -> None:
    module = importlib.import_module(f"nni_bertnas.deploy.{FORMATS[name].module}")
    assert callable(module.export) and FORMATS[name].help
