"""Pairs and scores through every stage, with augmentation."""

import csv
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from pyarrow import parquet
from rich.console import Console
from scipy.stats import pearsonr
from sklearn.metrics import accuracy_score
from tiny import WORDS, all_units, pair, tiny_run, write_scores
from transformers import AutoTokenizer, pipeline

from nni_bertnas.augment.parts import LABELLED, rows_of_copies
from nni_bertnas.data.rows import UNLABELLED
from nni_bertnas.data.tokens import tokenize
from nni_bertnas.deploy.predict import load_predictor
from nni_bertnas.errors import PhaseError
from nni_bertnas.report.results import show
from nni_bertnas.stages.run import Run
from nni_bertnas.stages.stage import ensure, find, load
from nni_bertnas.training.metrics import evaluate_classifier
from search_space.student import StudentForSequenceClassification

SEED = {"seed": 0}


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
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    root = tmp_path_factory.mktemp("pairs")
    (root / "own").mkdir()
    words = np.random.default_rng(2).choice(WORDS, (30, 5))
    (root / "single.txt").write_text("\n".join(" ".join(row) for row in words))
    run = tiny_run(
        root,
        task=request.param(root / "own"),
        teacher={"epochs": 8, "batch_size": 8},
        augment={"copies": 2, "fit_epochs": 1, "probability": 0.2},
        transfer={"files": [str(root / "single.txt")]},
        distill={"losses": {"logit_mse": 1.0, "label": 0.1, "hidden_mse": 0.1, "sentence_vector": 0.1}},
        pairs={"bm25": 1, "near": 1, "beyond": 1, "random": 1},
        supernet={"epochs": 6, "epoch_rows": 1600},
    )
    all_units(run, "cell", "block")
    with pytest.raises(PhaseError, match="bertnas masked_lm STUDY"):
        ensure(run, "supernet", SEED)
    ensure(run, "masked_lm")
    with pytest.raises(PhaseError, match="bertnas augment STUDY"):
        ensure(run, "supernet", SEED)
    all_units(run, "augment", "supernet")
    return run


def test_the_saved_student_has_the_scores_of_its_result(finished: Run) -> None:
    folder, spec = finished.folder("supernet", SEED), finished.task
    result = finished.read("supernet", SEED)
    data = finished.data
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
    assert student.config.problem_type == ("regression" if spec.regression else "single_label_classification")
    classify = pipeline("text-classification", str(folder / "student"), truncation=True, trust_remote_code=True)
    assert classify.tokenizer.model_max_length == student.config.max_position_embeddings
    said = classify({"text": rows.texts[0], "text_pair": rows.pairs[0]}, top_k=1)[0]["score"]
    assert said == pytest.approx(float(logits[0, 0] if spec.regression else logits[0].softmax(-1).max()), abs=1e-5)
    assert classify({"text": " ".join(rows.texts * 9), "text_pair": rows.pairs[0]})  # cut to what the student knows
    found = load_predictor(folder / "student").probabilities(rows)
    expected = logits if spec.regression else logits.softmax(-1)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_store_keeps_pairs_apart_and_the_teachers_scores(finished: Run) -> None:
    store, spec = finished.dev, finished.task
    rows = finished.data.splits["dev"]
    tokenizer = AutoTokenizer.from_pretrained(finished.folder("teacher"))
    first = store.tokens[: store.offsets[1]]
    types = store.token_types[: store.offsets[1]]
    assert tokenizer.decode(first[types == 1], skip_special_tokens=True) == rows.pairs[0]
    assert tokenizer.decode(first[types == 0], skip_special_tokens=True) == rows.texts[0]
    assert store.labels.dtype == (np.float32 if spec.regression else np.int64)
    assert store.logits.shape == (len(rows), 1 if spec.regression else 3)


def test_augmented_pairs_change_on_both_sides(finished: Run) -> None:
    table = parquet.read_table(finished.folder("augment") / "rows.parquet").to_pydict()
    first, second = (table[name] for name in finished.task.texts)
    train = finished.data.splits["train"]
    origin = table["row"]
    changed = [(a != train.texts[row], b != train.pairs[row]) for a, b, row in zip(first, second, origin, strict=True)]
    assert np.mean(changed, axis=0).min() > 0.6
    folder = finished.folder("augment")
    store, rows = finished.open_store(folder / LABELLED), rows_of_copies(folder, 2)
    assert len(rows) == len(first) and store.edges == []
    result = finished.read("augment")
    labels = np.asarray(train.labels)[origin]
    if finished.task.regression:
        assert np.isnan(store.labels).all()
        assert result["disagreement"] == pytest.approx(np.abs(store.logits[:, 0].astype(float) - labels).mean())
    else:
        assert result["disagreement"] == pytest.approx(np.mean(store.logits.argmax(1) != labels))


def test_single_texts_without_labels_have_vectors_and_no_answer(finished: Run) -> None:
    store, count = finished.train, len(finished.data.splits["train"])
    assert len(store) == count + 30 and np.isfinite(store.logits[:count]).all() and np.isnan(store.logits[count:]).all()
    first, second = store.vectors(np.arange(count, count + 30)).chunk(2)
    assert first.abs().sum(1).min() > 0 and not second.any()
    assert store.index.separate == (finished.shape.encoding == "separate") == finished.task.regression


def test_mined_pairs_are_new_labelled_and_spread_as_the_tasks(finished: Run) -> None:
    result, folder = finished.read("pairs"), finished.folder("pairs")
    table = parquet.read_table(folder / "rows.parquet").to_pydict()
    first, second = (table[name] for name in finished.task.texts)
    train = finished.data.splits["train"]
    own = {
        frozenset(pair) for rows in finished.data.splits.values() for pair in zip(rows.texts, rows.pairs, strict=True)
    }
    assert not own & {frozenset(pair) for pair in zip(first, second, strict=True)}
    assert {*first, *second} <= {*train.texts, *train.pairs} and len(first) == result["rows"] <= result["mined"]
    store = finished.open_store(folder / LABELLED)
    np.testing.assert_allclose(np.array(table["answer"]), store.logits[table["number"]].astype(float))
    assert np.isnan(store.labels).all() if finished.task.regression else (store.labels == UNLABELLED).all()
    share, wanted = (np.array(result[name]) / sum(result[name]) for name in ("histogram", "histogram_of_train"))
    assert np.abs(share - wanted).max() < 0.15
    assert sum(result["by_origin"].values()) == result["rows"]
    text = load("pairs").describe(finished, result)
    assert text.count("\n") == 3 and "mined pairs kept" in text and " | " in text


def test_the_report_has_every_metric(finished: Run, capsys: pytest.CaptureFixture[str]) -> None:
    show(finished, Console(width=160))
    text = capsys.readouterr().out
    assert all(f"{metric}, %" in text for metric in finished.task.metrics)


def test_other_augmentation_makes_another_student(finished: Run) -> None:
    assert find(finished, "supernet", SEED) is not None
    study = finished.study
    for copies in (1, 0):
        other = Run(dataclasses.replace(study, augment=dataclasses.replace(study.augment, copies=copies)))
        assert find(other, "supernet", SEED) is None


def test_the_scorer_reads_pairs_as_the_model_does(finished: Run) -> None:
    predictor = load_predictor(finished.folder("teacher"))
    assert predictor.texts == finished.task.texts
    split = finished.data.final_splits[0]
    tokens = tokenize(predictor.tokenizer, finished.data.splits[split], 32)
    batches = [tokens.batch([number]) for number in range(len(tokens))]
    scores = evaluate_classifier(predictor.model, batches, finished.task)
    assert scores == pytest.approx(finished.read("teacher")[split], abs=5e-3)


def test_head_and_encoding_are_searched_through_nni(finished: Run) -> None:
    study = finished.study
    searching = dataclasses.replace(study.student, head="search", encoding="search")
    supernet = dataclasses.replace(study.supernet, epochs=2, epoch_rows=800, search_epochs=1)
    run = Run(dataclasses.replace(study, student=searching, supernet=supernet))
    assert find(run, "features") is not None  # the phases before are as they were
    result = ensure(run, "supernet", {"seed": 1})
    assert set(result["shapes"]) == {
        "pool_joint", "compare_joint", "compare_separate", "align_joint", "align_separate"
    }  # fmt: skip
    best = max(result["shapes"], key=result["shapes"].get)
    assert "{head}_{encoding}".format(**result["shape"]) == best
    student = StudentForSequenceClassification.from_pretrained(run.folder("supernet", {"seed": 1}) / "student")
    assert f"{student.config.head}_{student.config.encoding}" == best
    assert result["student"][f"dev_{run.task.metric}"] > 0.5
