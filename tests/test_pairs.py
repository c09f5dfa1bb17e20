"""Pairs and scores through every phase, with augmentation."""

import csv
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import WORDS, tiny_study
from rich.console import Console
from scipy.stats import pearsonr
from sklearn.metrics import accuracy_score
from transformers import AutoTokenizer

from nni_bertnas.artifacts import RunDirectory, read_result
from nni_bertnas.augment.replace import ensure_augmented, open_augmented
from nni_bertnas.config import Study
from nni_bertnas.data.batches import load_task, tokenize
from nni_bertnas.data.tasks import task_spec
from nni_bertnas.deploy.predict import load_predictor
from nni_bertnas.errors import PhaseError
from nni_bertnas.report.results import show
from nni_bertnas.stages import block, cell, supernet
from nni_bertnas.store.reader import ensure_features, open_features
from nni_bertnas.training.masked_lm import ensure_masked_lm
from nni_bertnas.training.metrics import evaluate_classifier
from nni_bertnas.training.teacher import ensure_teacher
from search_space.student import StudentForSequenceClassification

CLUES = WORDS[:10]
TEXTS = ["sentence1", "sentence2"]


def pair(generator: np.random.Generator) -> tuple[str, str, int]:
    """Two texts of six words, and how many clues the second holds."""
    first = generator.choice(WORDS[10:], 6)
    clues = int(generator.integers(0, 6))
    second = np.concatenate([generator.choice(CLUES, clues), generator.choice(WORDS[10:], 6 - clues)])
    return " ".join(first), " ".join(generator.permutation(second)), clues


def write_scores(folder: Path) -> dict:
    """STS-B's layout."""
    generator = np.random.default_rng(0)
    columns = ["index", "genre", "filename", "year", "old_index", "source1", "source2", *TEXTS, "score"]
    (folder / "STS-B").mkdir(parents=True)
    for name, count in (("train.tsv", 300), ("dev.tsv", 60)):
        lines = ["\t".join(columns)]
        for number in range(count):
            first, second, clues = pair(generator)
            lines.append("\t".join([str(number), *["x"] * 6, first, second, f"{clues:.3f}"]))
        (folder / "STS-B" / name).write_text("\n".join(lines) + "\n")
    return {"name": "stsb", "source": "glue", "data_dir": str(folder), "max_length": 32}


def write_classes(folder: Path) -> dict:
    """Own pairs in a CSV with labels as words."""
    generator = np.random.default_rng(1)
    with (folder / "pairs.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["left", "verdict", "right"])
        for _ in range(360):
            first, second, clues = pair(generator)
            writer.writerow([first, ("none", "some", "many")[(clues > 0) + (clues > 2)], second])
    custom = {"train": str(folder / "pairs.csv"), "text_columns": ["left", "right"], "label_column": "verdict"}
    return {"name": "custom", "source": "files", "custom": custom, "max_length": 32}


@pytest.fixture(scope="module", params=[write_scores, write_classes])
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Study:
    root = tmp_path_factory.mktemp("pairs")
    (root / "own").mkdir()
    study = tiny_study(
        root,
        task=request.param(root / "own"),
        teacher={"epochs": 8, "batch_size": 8},
        augment={"copies": 2, "fit_epochs": 1, "probability": 0.2},
        supernet={"epochs": 6, "epoch_rows": 1600},
    )
    ensure_teacher(study)
    ensure_features(study)
    for phase in (cell, block):
        for unit in phase.units(study, 2):
            phase.run(study, **unit)
    with pytest.raises(PhaseError, match="--fit-mlm"):
        supernet.run(study, 0)
    ensure_masked_lm(study)
    with pytest.raises(PhaseError, match="bertnas augment STUDY"):
        supernet.run(study, 0)
    ensure_augmented(study)
    supernet.run(study, 0)
    return study


def test_the_saved_student_has_the_scores_of_its_result(finished: Study) -> None:
    folder, spec = RunDirectory(finished).supernet(0), task_spec(finished.task)
    result = read_result(folder)
    data = load_task(finished.task)
    split = data.final_splits[0]
    rows = data.splits[split]
    student = StudentForSequenceClassification.from_pretrained(folder / "student").eval()
    assert student.config.num_labels == (1 if spec.regression else 3)
    if not spec.regression:
        assert student.config.id2label == dict(enumerate(data.label_names)) == {0: "many", 1: "none", 2: "some"}
    tokens = AutoTokenizer.from_pretrained(folder / "student")(
        rows.texts, rows.pairs, padding=True, return_tensors="pt"
    )
    with torch.inference_mode():
        logits = student(**tokens).logits
    metric = f"{split}_{spec.metrics[0]}"
    own = (
        pearsonr(rows.labels, logits[:, 0])[0]
        if spec.regression
        else accuracy_score(rows.labels, logits.argmax(-1).numpy())
    )
    assert result["student"][metric] == pytest.approx(own, abs=1e-4)
    assert result["teacher"][metric] > 0.9 and result["student"][metric] > 0.8
    found = load_predictor(folder / "student").probabilities(rows)
    expected = logits if spec.regression else logits.softmax(-1)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_store_keeps_pairs_apart_and_the_teachers_scores(finished: Study) -> None:
    store, spec = open_features(finished, "dev"), task_spec(finished.task)
    rows = load_task(finished.task).splits["dev"]
    tokenizer = AutoTokenizer.from_pretrained(RunDirectory(finished).teacher)
    first = store.tokens[: store.offsets[1]]
    types = store.token_types[: store.offsets[1]]
    assert tokenizer.decode(first[types == 1], skip_special_tokens=True) == rows.pairs[0]
    assert tokenizer.decode(first[types == 0], skip_special_tokens=True) == rows.texts[0]
    assert store.labels.dtype == (np.float32 if spec.regression else np.int64)
    assert store.logits.shape == (len(rows), 1 if spec.regression else 3)


def test_augmented_pairs_change_on_both_sides(finished: Study) -> None:
    from pyarrow import parquet

    table = parquet.read_table(RunDirectory(finished).augment / "rows.parquet").to_pydict()
    first, second = (table[name] for name in task_spec(finished.task).texts)
    train = load_task(finished.task).splits["train"]
    origin = table["row"]
    changed = [(a != train.texts[row], b != train.pairs[row]) for a, b, row in zip(first, second, origin, strict=True)]
    assert np.mean(changed, axis=0).min() > 0.6
    store, rows = open_augmented(finished)
    assert len(rows) == len(first) and store.edges == []
    result = read_result(RunDirectory(finished).augment)
    labels = np.asarray(train.labels)[origin]
    if task_spec(finished.task).regression:
        assert np.isnan(store.labels).all()
        assert result["disagreement"] == pytest.approx(np.abs(store.logits[:, 0].astype(float) - labels).mean())
    else:
        assert result["disagreement"] == pytest.approx(np.mean(store.logits.argmax(1) != labels))


def test_the_report_has_every_metric(finished: Study, capsys: pytest.CaptureFixture[str]) -> None:
    show(finished, Console(width=160))
    text = capsys.readouterr().out
    assert all(f"{metric}, %" in text for metric in task_spec(finished.task).metrics)


def test_other_augmentation_makes_another_student(finished: Study) -> None:
    assert supernet.find(finished, 0) is not None
    for changes in ({"copies": 1}, {"copies": 0}):
        other = dataclasses.replace(finished, augment=dataclasses.replace(finished.augment, **changes))
        assert supernet.find(other, 0) is None


def test_the_scorer_reads_pairs_as_the_model_does(finished: Study) -> None:
    predictor = load_predictor(RunDirectory(finished).teacher)
    assert predictor.texts == task_spec(finished.task).texts
    split = load_task(finished.task).final_splits[0]
    tokens = tokenize(predictor.tokenizer, load_task(finished.task).splits[split], 32)
    batches = [tokens.__getitems__([number]) for number in range(len(tokens))]
    scores = evaluate_classifier(predictor.model, batches, task_spec(finished.task))
    assert scores == pytest.approx(read_result(RunDirectory(finished).teacher)[split], abs=5e-3)
