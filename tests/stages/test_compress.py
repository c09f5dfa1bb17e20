"""`compress`: rows in, student out, and a study that the commands take."""

from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from nbclient import NotebookClient
from tiny import WORDS, tiny_study_fields, write_tiny_model

from nni_bertnas import compress
from nni_bertnas.cli import main
from nni_bertnas.errors import ConfigError
from nni_bertnas.study_files import load_study

NOTEBOOK = Path(__file__).parents[2] / "docs" / "compress.ipynb"


def frame(count: int = 200) -> pd.DataFrame:
    """Texts that are good where they hold a word of the first ten, with a score of how many they hold."""
    generator, rows = np.random.default_rng(0), []
    for number in range(count):
        clues = int(generator.integers(1, 5)) * (number % 2)
        words = [*generator.choice(WORDS[:10], clues), *generator.choice(WORDS[10:], 6)]
        score = clues + float(generator.random()) / 10
        rows.append(
            {"body": " ".join(words), "other": WORDS[number % 95], "good": ["no", "yes"][number % 2], "score": score}
        )
    return pd.DataFrame(rows)


def tiny(root: Path) -> dict:
    """Sections of the tiny study, and its model."""
    if not (root / "model").exists():
        write_tiny_model(root / "model")
    fields = tiny_study_fields(root)
    sections = {name: fields[name] for name in ("student", "cell", "block", "supernet", "general")}
    return {"model": str(root / "model"), "teacher": {"num_blocks": 2, "epochs": 3, "learning_rate": 3e-3}, **sections}


@pytest.mark.slow
def test_rows_in_student_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows, more = frame(), tiny(tmp_path)
    more["supernet"] = {**more["supernet"], "budget": {"min_speedup": None}}
    student, report = compress(train=rows, text="body", label="good", run_dir=tmp_path / "runs" / "mine", **more)
    assert report.folder == tmp_path / "runs" / "mine" and report.meant
    study = load_study(report.study)
    assert study.name == "mine" and study.task.custom is not None and study.task.custom.label_column == "good"
    assert study.student.hidden_size == 16 and study.supernet.budget.min_speedup is None
    predicted = student.predict(rows.body.tolist())
    agreement = np.mean([one == label for one, label in zip(predicted, rows.good, strict=True)])
    assert agreement > 0.7, "what it learnt, it says"
    teacher_accuracy, student_accuracy = report.scores["test accuracy"]
    assert 0 <= student_accuracy <= 1 and 0 <= teacher_accuracy <= 1
    assert report.num_params[0] > report.num_params[1] > 0 and report.speedup > 0
    assert f"{student_accuracy * 100:.2f}" in report._repr_html_() and f"{student_accuracy * 100:.2f}" in str(report)
    assert main(["report", str(report.study)]) == 0
    assert "mine: teacher against student" in capsys.readouterr().out
    before = (report.student.parent / "result.json").stat().st_mtime_ns
    compress(train=rows, text="body", label="good", run_dir=tmp_path / "runs" / "mine", **more)
    assert (report.student.parent / "result.json").stat().st_mtime_ns == before, "what is finished is reused"


@pytest.mark.slow
def test_pairs_and_scores_and_files_made_small(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    frame().to_csv(path, index=False)
    student, report = compress(
        train=path, text=("body", "other"), label="score", test=frame(40), dev=str(path),
        run_dir=tmp_path / "runs" / "b", smoke=True, task={"repeated": "keep"}, **tiny(tmp_path),
    )  # fmt: skip
    assert report.folder.name == "b-smoke" and not report.meant and "mean nothing" in str(report)
    assert "test pearson" in report.scores
    (score,) = student.predict([("qaa qab", "qac")])
    assert isinstance(score, float)
    with pytest.raises(ConfigError, match="the model reads pairs of texts"):
        student.predict(["qaa"])
    with pytest.raises(ConfigError, match="give a list of texts"):
        student.predict("qaa")
    assert student.predict([]) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"text": "bodi"}, "train: there is no column bodi; there are body, other, good, score"),
        ({"label": "kew"}, "train: there is no column kew"),
        ({"dev": "none.csv"}, "none.csv does not exist"),
        ({"run_dir": "runs/my run"}, "run_dir: its last part names the study"),
        ({"student": {"hiden_size": 8}}, "student.hiden_size: unknown key"),
        ({"speedup": -1}, "supernet.budget.min_speedup"),
        ({"profile": "huge"}, "profile: must be tiny, small, base"),
    ],
)
def test_what_is_wrong_is_said_before_any_work(tmp_path: Path, arguments: dict, message: str) -> None:
    write_tiny_model(tmp_path / "model")
    given = {"text": "body", "label": "good", "run_dir": tmp_path / "runs" / "a", **arguments}
    with pytest.raises(ConfigError) as error:
        compress(str(tmp_path / "model"), frame(), **given)
    assert message in str(error.value)


def test_a_column_of_several_kinds_is_refused(tmp_path: Path) -> None:
    rows = frame().assign(good=lambda one: [number if number % 2 else "a" for number in range(len(one))])
    with pytest.raises(ConfigError, match="holds values of several kinds"):
        compress("model", rows, text="body", label="good", run_dir=tmp_path / "a")


@pytest.mark.integration
@pytest.mark.long
def test_the_notebook_runs(tmp_path: Path) -> None:
    notebook = nbformat.read(NOTEBOOK, 4)
    assert NOTEBOOK.stat().st_size < 20_000
    NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    outputs = [cell.outputs[-1].get("data", {}) for cell in notebook.cells if cell.cell_type == "code" and cell.outputs]
    assert any("<table>" in one.get("text/html", "") for one in outputs), "the report as a table"
    assert (tmp_path / "runs" / "reviews-smoke" / "study.yml").is_file()
