"""A task whose rows have any number of labels, from its file to predictions."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from tiny import WORDS, all_units, tiny_run, tiny_study_fields
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from nni_bertnas.data.label_sets import members
from nni_bertnas.deploy.predict import load_predictor, predict_file
from nni_bertnas.errors import ConfigError
from nni_bertnas.report.data import _examples, show_data
from nni_bertnas.report.results import show
from nni_bertnas.stages.run import Run
from nni_bertnas.stages.stage import ensure
from nni_bertnas.study_files import parse_study

NAMES = ["anger", "fear", "joy"]
SEED = {"seed": 0}


def write(folder: Path) -> str:
    """A text has the labels whose clues it holds."""
    generator = np.random.default_rng(0)
    rows = []
    for _ in range(600):
        has = generator.random(3) < 0.4
        words = [WORDS[10 * label + generator.integers(0, 2)] for label in range(3) if has[label]]
        words += [WORDS[number] for number in generator.integers(30, 95, 3)]
        labels = [name for name, one in zip(NAMES, has, strict=True) if one]
        rows.append({"text": " ".join(generator.permutation(words)), "label": labels})
    (folder / "sets.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return str(folder / "sets.jsonl")


def own_run(root: Path, train: str, kind: str = "multi_label", **more: object) -> Run:
    tiny_study_fields(root)
    custom = {"train": train, "text_columns": ["text"], "kind": kind}
    task = {"name": "custom", "source": "files", "max_length": 32, "custom": custom, "data_dir": None}
    return tiny_run(root, task=task, **{"supernet": {"epochs": 15, "learning_rate": 3e-3}, **more})


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    root = tmp_path_factory.mktemp("sets")
    tiny_study_fields(root)
    run = own_run(
        root, write(root), teacher={"model": str(root / "model"), "epochs": 10, "batch_size": 8, "learning_rate": 2e-3},
        cell={"strategy": "random", "options": {"samples": 2}, "epochs": 2, "candidates": 1},
        block={"candidates": 1}, distill={"losses": {"logit_mse": 1.0, "label": 0.1, "soft_cross_entropy": 0.1}},
        augment={"corruptions": 1},
    )  # fmt: skip
    all_units(run, "teacher", "features", "cell", "block", "corrupt", "supernet")
    return run


def test_teacher_and_student_learn_the_sets(finished: Run) -> None:
    teacher, result = finished.read("teacher"), finished.read("supernet", SEED)
    own = [f"f1 of {name}" for name in NAMES]
    assert set(teacher["test"]) == {"micro_f1", "macro_f1", "exact_match", *own}
    assert np.mean([teacher["test"][name] for name in own]) == pytest.approx(teacher["test"]["macro_f1"])
    console = Console(record=True, width=120)
    show(finished, console)
    shown = console.export_text()
    for name in own:
        figures = [f"{100 * one[f'test_{name}']:.2f}" for one in (result["teacher"], result["student"])]
        assert re.search(rf"test {name}, %.*{figures[0]}.*{figures[1]}", shown)
    assert teacher["test"]["micro_f1"] > 0.75  # where all labels always are said it is 0.57
    assert result["student"]["test_micro_f1"] > teacher["test"]["micro_f1"] - 0.1
    for folder in (finished.folder("teacher"), finished.folder("supernet", SEED) / "student"):
        config = AutoModelForSequenceClassification.from_pretrained(folder).config
        assert config.problem_type == "multi_label_classification" and list(config.id2label.values()) == NAMES


def test_predict_and_pipeline_agree(finished: Run, tmp_path: Path) -> None:
    folder = finished.folder("supernet", SEED) / "student"
    rows = finished.data.splits["test"]
    found = load_predictor(folder).probabilities(rows)
    assert not np.allclose(found.sum(1), 1)
    said = pipeline("text-classification", str(folder), trust_remote_code=True, top_k=None)(rows.texts[:1])
    assert {one["label"]: one["score"] for one in said[0]} == pytest.approx(
        dict(zip(NAMES, found[0], strict=True)), 1e-4
    )
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(rows.texts[0], return_tensors="pt")
    own = model(**inputs, labels=torch.tensor([[1.0, 0.0, 1.0]]))
    wanted = torch.tensor([[1.0, 0.0, 1.0]])
    torch.testing.assert_close(own.loss, torch.nn.functional.binary_cross_entropy_with_logits(own.logits, wanted))
    source = tmp_path / "one.csv"
    source.write_text("text\n" + "".join(f"{text}\n" for text in rows.texts))
    counts = predict_file(load_predictor(folder), source, tmp_path / "out.csv", columns=None, literal_quotes=False)
    with (tmp_path / "out.csv").open() as file:
        written = list(csv.DictReader(file))
    expected = [[name for name, one in zip(NAMES, row, strict=True) if one > 0.5] for row in found]
    assert [json.loads(row["prediction"]) for row in written] == expected
    assert [float(row["probability_joy"]) for row in written] == pytest.approx(found[:, 2].tolist(), abs=1e-6)
    assert counts == {name: sum(name in one for one in expected) for name in counts}


def test_the_data_are_shown_by_label(finished: Run) -> None:
    console = Console(record=True, width=120, markup=False)
    show_data(finished, console)
    text = console.export_text()
    train = finished.data.splits["train"]
    labels = [train.labels[number] for number in _examples(train)]
    joys = sum(int(label) >> 2 & 1 for label in train.labels)
    assert re.search(rf"joy\W+{joys} \({joys / len(train):.1%}\)", text)
    for label in labels:
        assert f"  {', '.join(NAMES[one] for one in members(label, 3)) or 'no label'}: [CLS]" in text


def test_one_label_and_any_number_of_them_do_not_mix(finished: Run, tmp_path: Path) -> None:
    lines = [f"{WORDS[number % 95]} {WORDS[number // 9]},{NAMES[number % 3]}" for number in range(300)]
    (tmp_path / "one.csv").write_text("text,label\n" + "\n".join(lines) + "\n")
    model = {"model": str(finished.folder("teacher")), "epochs": 1}
    single = own_run(tmp_path, str(tmp_path / "one.csv"), "classification", teacher=model)
    with pytest.raises(
        ConfigError, match=r"any number of labels to a row, the task one; set teacher\.fine_tune: always"
    ):
        ensure(single, "teacher")
    anew = own_run(tmp_path, str(tmp_path / "one.csv"), "classification", teacher={**model, "fine_tune": "always"})
    assert ensure(anew, "teacher")["fine_tuned"]


@pytest.mark.parametrize(
    ("section", "fields", "message"),
    [
        ("distill", {"losses": {"probe": 1.0}}, "probe is for one label a row"),
        ("task", {"metric": "accuracy"}, "accuracy does not suit multi_label"),
    ],
)
def test_what_is_not_for_sets(section: str, fields: dict, message: str, tmp_path: Path) -> None:
    raw = tiny_study_fields(tmp_path)
    own = {"train": "a.csv", "text_columns": ["text"], "kind": "multi_label"}
    if section == "task":
        own |= fields
    else:
        raw[section] = fields
    raw["task"] = {"name": "custom", "source": "files", "custom": own}
    with pytest.raises(ConfigError, match=message):
        parse_study(raw)
