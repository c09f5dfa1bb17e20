import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from exported import chain_of, some_rows, write_student
from transformers import BertForSequenceClassification

from nni_bertnas.cli import main
from nni_bertnas.deploy import FORMATS
from nni_bertnas.deploy.export import export
from nni_bertnas.deploy.fidelity import agreement
from nni_bertnas.deploy.predict import load_predictor
from nni_bertnas.errors import ConfigError, PhaseError
from nni_bertnas.runtime.classifier import Classifier
from nni_bertnas.stages.run import Run
from search_space.cells import SPACES
from search_space.heads import ENCODINGS, HEADS
from search_space.operations import OPERATIONS, suits_width


def architecture(space: str) -> dict:
    """The first choice in every decision of a cell of two layers."""
    found: dict = {}

    class First:
        def operation(self, label, names, make):
            found[label] = names[0]
            return make(names[0])

        def inputs(self, label, count, chosen):
            found[label] = list(range(chosen))
            from search_space.cells import PickInputs

            return PickInputs(found[label])

    SPACES[space](First(), 2, [name for name in SPACES[space].OPERATIONS if suits_width(name, 24)], 24)
    return {"space": space, "depth": 2, "architecture": found}


_SUITABLE = [name for name in OPERATIONS if suits_width(name, 24)]
STUDENTS = {
    "every operation": ([chain_of(_SUITABLE[: len(_SUITABLE) // 2]), chain_of(_SUITABLE[len(_SUITABLE) // 2 :])], {}),
    "every space": ([architecture(space) for space in SPACES], {}),
    "no cells": ([], {"head": "align", "encoding": "separate"}),
    **{
        f"{head}, {encoding}, {symmetric}": (
            [chain_of(["max_pool_3"]), chain_of(["attention_4"])],
            {"head": head, "encoding": encoding, "symmetric": symmetric},
        )
        for head, encoding, symmetric in [
            ("compare", "joint", True),
            ("align", "joint", False),
            ("compare", "separate", False),
            ("align", "separate", True),
        ]
    },
}


def test_the_students_have_all_operations_spaces_and_heads() -> None:
    assert set(_SUITABLE) == {name for name in OPERATIONS if "quarter" not in name or suits_width(name, 24)}
    assert {shape.get("head", "pool") for _, shape in STUDENTS.values()} == set(HEADS)
    assert {shape.get("encoding", "joint") for _, shape in STUDENTS.values()} == set(ENCODINGS)


@pytest.mark.parametrize("name", STUDENTS)
def test_every_operation_space_and_head_is_exported_as_it_is(tmp_path: Path, name: str) -> None:
    cells, shape = STUDENTS[name]
    source, pairs = write_student(tmp_path / "student", cells, **shape), "head" in shape
    rows = some_rows(pairs)
    found = export(source, "onnx", tmp_path / "onnx", held_out=rows, calibration=rows)
    assert found.share == 1 and found.difference < 2e-5 and found.num_rows == 40
    classifier = Classifier(tmp_path / "onnx", batch_size=7)  # other batches and lengths than in the check
    before = load_predictor(source).probabilities(rows)
    np.testing.assert_allclose(classifier.probabilities(rows.texts, rows.pairs), before, atol=2e-5)
    assert len({tuple(row.round(3)) for row in before}) > 20


SCORES, LABELS = "regression", "multi_label_classification"
PROBLEMS = {
    "onnx": SCORES,
    "onnx-int8": LABELS,
    "onnx-int8-static": SCORES,
    "openvino": LABELS,
    "torchscript": SCORES,
}


@pytest.mark.parametrize(("name", "problem"), PROBLEMS.items())
def test_every_format_gives_scores_and_labels(tmp_path: Path, name: str, problem: str) -> None:
    source = write_student(
        tmp_path / "student", [chain_of(["convolution_3", "attention_4"])], problem=problem, head="compare",
        encoding="separate",
    )  # fmt: skip
    rows, threads = some_rows(True), torch.get_num_threads()
    torch.set_num_threads(2)
    found = export(source, name, tmp_path / "out", held_out=rows, calibration=rows, min_agreement=0.5)
    assert torch.get_num_threads() == 2  # which all of the process share
    torch.set_num_threads(threads)
    classifier = Classifier(tmp_path / "out")
    exact = "int8" not in name
    assert found.difference < 2e-5 if exact else found.difference > 1e-5
    assert json.loads((tmp_path / "out" / "bertnas.json").read_text())["agreement"]["share"] == found.share
    first = classifier(rows.texts[0], rows.pairs[0])[0]
    before = load_predictor(source)
    assert set(PROBLEMS) == set(FORMATS) - {"hf"}
    if problem == SCORES:
        assert set(first) == {"score"}
    else:
        assert set(first) == {"labels", "probabilities"} and set(first["probabilities"]) == set(before.label_names)
    if exact:
        np.testing.assert_allclose(
            classifier.probabilities(rows.texts, rows.pairs), before.probabilities(rows), atol=2e-5
        )
    sizes = [file.stat().st_size for file in (tmp_path / "out").iterdir() if file.suffix in (".onnx", ".xml", ".ts")]
    assert len(sizes) == 1
    assert (tmp_path / "out" / "Dockerfile").is_file() == ("onnx" in name)


def test_a_teacher_is_exported_too(built: Run, tmp_path: Path) -> None:
    assert main(["export", str(built.folder("teacher")), "--to", "onnx", "--output", str(tmp_path / "out")]) == 0
    found = json.loads((tmp_path / "out" / "bertnas.json").read_text())
    assert found["agreement"]["share"] == 1 and found["agreement"]["num_rows"] == len(built.data.splits["dev"])
    assert isinstance(load_predictor(built.folder("teacher")).model, BertForSequenceClassification)


def test_an_exported_model_answers_without_this_package_and_torch(tmp_path: Path) -> None:
    source, rows = write_student(tmp_path / "student", [chain_of(["convolution_3"])]), some_rows(False, 5)
    out = tmp_path / "out"
    export(source, "onnx", out, held_out=rows, calibration=rows)
    script = (
        "import sys; sys.modules['torch'] = sys.modules['transformers'] = sys.modules['nni_bertnas'] = None; "
        "from bertnas_runtime.__main__ import main; sys.exit(main())"
    )
    command = [sys.executable, "-c", script, str(out)]
    done = subprocess.run(command, input="\n".join(rows.texts), cwd=out, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    student = load_predictor(source)
    for line, row in zip(done.stdout.splitlines(), student.probabilities(rows), strict=True):
        said = json.loads(line)
        assert list(said["probabilities"].values()) == pytest.approx(row.tolist(), abs=1e-5)
        assert said["label"] == student.label_names[row.argmax()]
    done = subprocess.run(command, input="qaa\n \n", cwd=out, capture_output=True, text=True)
    assert done.returncode == 2 and "line 2: texts[0] is empty" in done.stderr


def test_what_does_not_answer_as_the_model_is_refused_with_the_labels_that_suffer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nni_bertnas.deploy import onnx

    source, rows = write_student(tmp_path / "student", [chain_of(["convolution_3"])]), some_rows(False, 200)
    own = onnx.write_graph

    def damaged(opened, file):
        opened.model.classifier.bias.data[2] -= 20.0  # nothing is yes any more
        own(opened, file)

    monkeypatch.setattr(onnx, "write_graph", damaged)
    with pytest.raises(PhaseError, match=r"answers as the model does on \d+\.\d% of 200 .* of yes \d") as caught:
        export(source, "onnx", tmp_path / "out", held_out=rows, calibration=rows)
    assert "maybe 1" not in str(caught.value) and not (tmp_path / "out").exists()
    found = export(source, "onnx", tmp_path / "out", held_out=rows, calibration=rows, min_agreement=0.0)
    assert found.share < 0.99


def test_agreement_is_counted_row_by_row() -> None:
    generator = np.random.default_rng(0)
    before, after = generator.random((200, 3)), generator.random((200, 3))
    names = ["a", "b", "c"]
    same = [
        max(range(3), key=lambda n: x[n]) == max(range(3), key=lambda n: y[n])
        for x, y in zip(before, after, strict=True)
    ]
    found = agreement(before, after, "class", names)
    assert found.share == pytest.approx(sum(same) / 200)
    own = [one for one, x in zip(same, before, strict=True) if x[1] == max(x)]
    assert found.by_label["b"] == pytest.approx(sum(own) / len(own))
    assert found.difference == pytest.approx(
        max(abs(x - y) for x, y in zip(before.ravel(), after.ravel(), strict=True))
    )
    several = agreement(before, after, "labels", names)
    sets = [
        {n for n in range(3) if x[n] > 0.5} == {n for n in range(3) if y[n] > 0.5}
        for x, y in zip(before, after, strict=True)
    ]
    assert several.share == pytest.approx(sum(sets) / 200)
    scores = generator.random((200, 1))
    near = scores + generator.normal(size=(200, 1)) * 0.05
    wanted = sum(abs(x - y) <= 0.1 * scores.std() for x, y in zip(scores[:, 0], near[:, 0], strict=True)) / 200
    assert agreement(scores, near, "score", ["score"]).share == pytest.approx(wanted)


def test_what_cannot_be_exported_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    student, rows = write_student(tmp_path / "student", [chain_of(["convolution_3"])]), some_rows(False)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(ConfigError, match=r"--output: .* is there already"):
        export(student, "onnx", tmp_path / "full", held_out=rows, calibration=rows)
    with pytest.raises(ConfigError, match="--min-agreement must be a share from 0 to 1, got 98"):
        export(student, "onnx", tmp_path / "out", held_out=rows, calibration=rows, min_agreement=98)
    with pytest.raises(ConfigError, match="--to"):
        export(student, "tflite", tmp_path / "out", held_out=rows, calibration=rows)

    def run(*arguments: str) -> str:
        code = main(["export", *arguments, "--to", "hf", "--output", str(tmp_path / "out")])
        said = capsys.readouterr()
        return said.out if code == 0 else said.err

    assert "--rows" in run(str(student)) and "holds no model" in run(str(tmp_path))
    source = tmp_path / "rows.csv"
    source.write_text("a\n")
    assert "has no rows" in run(str(student), "--rows", str(source))
    source.write_text("\n".join(["a", *rows.texts]))
    assert "answers as it does on 100.00% of 40 held-out rows" in run(str(student), "--rows", str(source))


def test_a_classifier_refuses_what_is_no_row(tmp_path: Path) -> None:
    source = write_student(tmp_path / "student", [], head="compare", encoding="separate")
    rows = some_rows(True)
    export(source, "onnx", tmp_path / "out", held_out=rows, calibration=rows)
    classifier = Classifier(tmp_path / "out")
    assert classifier.probabilities([], []).shape == (0, 3)
    for given, message in (
        (("qaa", None), "reads pairs of texts: a, b"),
        ((["qaa", "qab"], ["qaa"]), "as many as texts, 2, got 1"),
        ((["qaa", " "], ["qaa", "qab"]), r"texts\[1\] is empty"),
        ((["qaa"], [3]), r"pairs\[0\] must be a text, got int"),
        ((["qaa"], ["\ud800"]), "not valid Unicode"),
    ):
        with pytest.raises(ValueError, match=message):
            classifier.probabilities(*given)
    (tmp_path / "out" / "model.onnx").write_bytes(b"no model")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        Classifier(tmp_path / "out")
    with pytest.raises(ConfigError, match=r"holds no bertnas\.json"):
        Classifier(tmp_path)


def test_a_hub_that_is_not_reachable_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["push", str(tmp_path), "me/student"]
    assert main(command) == 2 and "has no model card" in capsys.readouterr().err
    (tmp_path / "README.md").write_text("# a card")
    assert main(command) == 2 and "HF_HUB_OFFLINE" in capsys.readouterr().err
    script = (  # the library reads both when it is loaded
        "import os; os.environ['HF_ENDPOINT'] = 'http://127.0.0.1:9'; os.environ['HF_HUB_OFFLINE'] = '0'; "
        f"from nni_bertnas.cli import main; raise SystemExit(main({command!r}))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 2 and "http://127.0.0.1:9 did not take it" in done.stderr
