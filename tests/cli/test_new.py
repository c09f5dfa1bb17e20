"""`bertnas new`: the study it writes is right, whatever the data are."""

import io
import sys
from pathlib import Path

import pandas as pd
import pytest
from tiny import WORDS, write_tiny_model

from nni_bertnas.cli import main
from nni_bertnas.study_files import load_study


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a tiny model and a file of tickets, where the commands run."""
    write_tiny_model(tmp_path / "model")
    texts = [" ".join(WORDS[(number + step) % 95] for step in range(3 + number % 9)) for number in range(200)]
    frame = {"title": ["a"] * 200, "text": texts, "queue": ["it"] * 180 + ["hr"] * 20}
    pd.DataFrame(frame).to_csv(tmp_path / "tickets.csv", index=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_study_is_written_that_validates(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["new", "--data", "tickets.csv", "--teacher", "model", "--speedup", "7"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    for part in ("text: text, the longest texts", "label: queue", "metric: f1_macro, as 90% of train", "bertnas plan"):
        assert part in said, said
    assert main(["validate", "tickets.yml"]) == 0
    study = load_study("tickets.yml")
    own = study.task.custom
    assert own is not None and (own.text_columns, own.label_column, own.kind) == (["text"], "queue", "classification")
    assert study.name == "tickets" and own.metric == "f1_macro" and study.teacher.model == "model"
    assert study.task.max_length == 32 and study.supernet.budget.min_speedup == 7.0
    lines = [line for line in Path("tickets.yml").read_text().splitlines() if not line.endswith(":")]
    assert all("#" in line for line in lines), "every line says what it is"


@pytest.mark.parametrize("change", ["pair", "scores", "sets", "columns", "holes"])
def test_every_kind_of_task(data: Path, change: str) -> None:
    frame = pd.read_csv("tickets.csv")
    if change == "pair":
        frame["other"] = frame.text[::-1].to_numpy()
    if change == "scores":
        frame["queue"] = [number / 7 for number in range(200)]
    if change == "sets":
        frame["queue"] = ["a;b", "b", "c;a", ""] * 50
    if change == "columns":
        frame = frame.drop(columns="queue").assign(rude=[0, 1] * 100, late=[0, 1, 1, 0] * 50)
    if change == "holes":
        frame.loc[:4, "text"] = ""
    frame.to_csv("rows.csv", index=False)
    texts = ["text", "other"] if change == "pair" else ["text"]
    assert main(["new", "a.yml", "--data", "rows.csv", "--teacher", "model", "--text", *texts]) == 0
    task = load_study("a.yml").task
    assert task.custom is not None and task.custom.text_columns == texts
    kinds = {"scores": "regression", "sets": "multi_label", "columns": "multi_label"}
    assert task.custom.kind == kinds.get(change, "classification")
    assert task.custom.label_columns == (["rude", "late"] if change == "columns" else None)
    assert task.custom.label_separator == (";" if change == "sets" else ",")
    assert task.bad_rows == ("skip" if change == "holes" else "error")


def test_nothing_is_written_over(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.yml").write_text("name: mine\n")
    command = ["new", "mine.yml", "--data", "tickets.csv", "--teacher", "model"]
    assert main(command) == 2
    assert "--force" in capsys.readouterr().err and Path("mine.yml").read_text() == "name: mine\n"
    assert main([*command, "--force"]) == 0
    assert load_study("mine.yml").name == "mine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--data: name the file of training rows"),
        (["--data", "none.csv"], "--data: none.csv does not exist"),
        (["--data", "tickets.csv", "--dev", "none.csv"], "--dev: none.csv does not exist"),
        (["--data", "tickets.csv", "--label", "kew"], "--label: there is no column kew; there are title, text, queue"),
        (["--data", "tickets.csv", "--speedup", "0"], "--speedup must be above 0"),
        (["--data", "tickets.csv", "--name", "my tickets"], "--name: is a folder's name"),
    ],
)
def test_wrong_input_is_one_clear_error(
    data: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["new", "a.yml", "--teacher", "model", *arguments]) == 2
    assert message in capsys.readouterr().err and not Path("a.yml").exists()


def test_a_terminal_is_asked(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Data, text, label, speed-up, teacher: an empty answer takes what is proposed."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", Terminal("tickets.csv\ntitle, text\n\n4\nmodel\n"))
    assert main(["new", "asked.yml"]) == 0
    study = load_study("asked.yml")
    assert study.task.custom is not None and study.task.custom.text_columns == ["title", "text"]
    assert study.task.custom.label_column == "queue" and study.supernet.budget.min_speedup == 4.0
    assert study.teacher.model == "model"
