import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics
from torch.nn import functional as F

from nni_bertnas.config import CustomSettings, TaskSettings
from nni_bertnas.data.metrics import METRICS, standard_error, title
from nni_bertnas.data.rows import UNLABELLED
from nni_bertnas.data.tasks import TASKS, TaskSpec, task_spec
from nni_bertnas.training.losses import label_loss
from nni_bertnas.training.metrics import Scorer, predictions_of

OF_SCORES = [name for name, metric in METRICS.items() if metric.of_scores]
NAN = float("nan")
REFERENCES: dict[str, Callable[..., float]] = {
    "accuracy": metrics.accuracy_score,
    "f1": metrics.f1_score,
    "f1_macro": lambda y, p: metrics.f1_score(y, p, average="macro"),
    "accuracy_f1": lambda y, p: np.mean([metrics.accuracy_score(y, p), metrics.f1_score(y, p)]),
    "matthews": metrics.matthews_corrcoef,
    "micro_f1": lambda y, p: metrics.f1_score(y, p, average="micro"),  # of sets; see test_label_sets
    "macro_f1": lambda y, p: metrics.f1_score(y, p, average="macro"),
    "exact_match": metrics.accuracy_score,
    "pearson": lambda y, p: stats.pearsonr(y, p).statistic,
    "spearman": lambda y, p: stats.spearmanr(y, p).statistic,
    "pearson_spearman": lambda y, p: np.mean([stats.pearsonr(y, p).statistic, stats.spearmanr(y, p).statistic]),
}
# TP = 3, FN = 2, FP = 1, TN = 4
LABELS = [1, 1, 1, 1, 1, 0, 0, 0, 0, 0]
PREDICTIONS = [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]
# Deviations (-1.5, -0.5, 0.5, 1.5) and (-2, -3, 0, 5): sums of products 12, of squares 5 and 38;
# ranks 1 2 3 4 and 2 1 3 4: 1 - 6 * 2 / (4 * 15).
SCORES, GUESSES = [1.0, 2.0, 3.0, 4.0], [2.0, 1.0, 4.0, 9.0]
PEARSON, SPEARMAN = 12 / math.sqrt(5 * 38), 0.8


def own_task(kind: str = "classification", metric: str | None = None, labels: list[str] | None = None) -> TaskSpec:
    custom = CustomSettings(
        train="rows.csv", text_columns=["a", "b"], label_column="grade", kind=kind, metric=metric, labels=labels
    )
    return task_spec(TaskSettings(name="custom", source="files", custom=custom))


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("seed", range(5))
def test_metrics_against_their_libraries(name: str, seed: int) -> None:
    generator = np.random.default_rng(seed)
    labels, predictions = generator.integers(0, 2, (2, 60))
    if METRICS[name].of_scores:
        labels = generator.integers(0, 6, 60) / 2  # with ties
        predictions = labels + generator.normal(0, 2, 60)
    assert METRICS[name].compute(labels, predictions) == pytest.approx(REFERENCES[name](labels, predictions), abs=1e-12)


def test_the_noise_of_a_metric() -> None:
    """Against the formulas for shares and correlations (Fisher)."""
    generator = np.random.default_rng(0)
    labels = generator.normal(size=(2, 400))
    right = (generator.random(400) < 0.8).astype(int)
    assert standard_error("accuracy", np.ones(400), right, 2000) == pytest.approx(math.sqrt(0.8 * 0.2 / 400), rel=0.06)
    expected = (1 - METRICS["pearson"].compute(*labels) ** 2) / math.sqrt(400)
    assert standard_error("pearson", *labels, 2000) == pytest.approx(expected, rel=0.12)
    assert standard_error("accuracy", np.ones(9), np.ones(9)) == 0


@pytest.mark.parametrize("name", ["accuracy", "f1_macro", "matthews"])
def test_metrics_of_several_classes_against_their_libraries(name: str) -> None:
    labels, predictions = np.random.default_rng(7).integers(0, 4, (2, 80))
    assert METRICS[name].compute(labels, predictions) == pytest.approx(REFERENCES[name](labels, predictions), abs=1e-12)


@pytest.mark.parametrize(
    ("name", "labels", "predictions", "value"),
    [
        ("accuracy", LABELS, PREDICTIONS, 7 / 10),
        ("f1", LABELS, PREDICTIONS, 2 * 3 / (2 * 3 + 1 + 2)),
        ("f1_macro", LABELS, PREDICTIONS, (6 / 9 + 8 / 11) / 2),
        ("accuracy_f1", LABELS, PREDICTIONS, (7 / 10 + 6 / 9) / 2),
        ("matthews", LABELS, PREDICTIONS, (3 * 4 - 1 * 2) / math.sqrt(4 * 5 * 5 * 6)),
        ("pearson", SCORES, GUESSES, PEARSON),
        ("spearman", SCORES, GUESSES, SPEARMAN),
        ("pearson_spearman", SCORES, GUESSES, (PEARSON + SPEARMAN) / 2),
        ("spearman", [1, 2, 3], [10, 5, 1], -1),
        ("f1", [0, 0], [0, 0], 0),
        ("f1", [1, 0, 1], [0, 0, 0], 0),
    ],
)
def test_metrics_worked_out_by_hand(
    name: str, labels: Sequence[float], predictions: Sequence[float], value: float
) -> None:
    assert METRICS[name].compute(labels, predictions) == pytest.approx(value)


@pytest.mark.parametrize("name", ["matthews", *OF_SCORES])
def test_a_constant_correlates_with_nothing(name: str) -> None:
    assert METRICS[name].compute([0, 1, 1, 0], [1, 1, 1, 1]) == METRICS[name].compute([1, 1, 1, 1], [0, 1, 1, 0]) == 0


@pytest.mark.parametrize("name", TASKS)
def test_every_task_fits_together(name: str) -> None:
    spec = TASKS[name]
    assert spec.metric in spec.metrics and set(spec.metrics) <= set(METRICS)
    assert len(set(spec.metrics)) == len(spec.metrics) and len(spec.texts) in (1, 2)
    assert all(METRICS[metric].of_scores == spec.regression for metric in spec.metrics)
    assert spec.regression == (name == "stsb")
    assert spec.label_names == () if spec.regression else len(set(spec.label_names)) == len(spec.label_names) >= 2
    if spec.glue:
        assert len(spec.glue.texts) == len(spec.texts) and set(spec.glue.dev) < {"train", *spec.hub_splits}


@pytest.mark.parametrize(
    ("name", "metric", "label_names"),
    [
        ("cola", "matthews", ["unacceptable", "acceptable"]),
        ("sst2", "accuracy", ["negative", "positive"]),
        ("mrpc", "accuracy_f1", ["not_equivalent", "equivalent"]),
        ("qqp", "accuracy_f1", ["not_duplicate", "duplicate"]),
        ("stsb", "pearson_spearman", []),
        ("mnli", "accuracy", ["entailment", "neutral", "contradiction"]),
        ("qnli", "accuracy", ["entailment", "not_entailment"]),
        ("rte", "accuracy", ["entailment", "not_entailment"]),
        ("wnli", "accuracy", ["not_entailment", "entailment"]),
        ("ax", "matthews", ["entailment", "neutral", "contradiction"]),
    ],
)
def test_tasks_are_ranked_and_numbered_as_by_the_glue_benchmark(name: str, metric: str, label_names: list[str]) -> None:
    spec = task_spec(TaskSettings(name=name))
    assert spec.metric == metric and list(spec.label_names) == label_names


@pytest.mark.parametrize(
    ("kind", "metric", "ranked", "reported"),
    [
        ("classification", None, "accuracy", ("accuracy", "f1_macro", "matthews")),
        ("classification", "matthews", "matthews", ("matthews", "accuracy", "f1_macro")),
        ("classification", "f1", "f1", ("f1", "accuracy", "f1_macro", "matthews")),
        ("regression", None, "pearson_spearman", ("pearson_spearman", "pearson", "spearman")),
        ("regression", "spearman", "spearman", ("spearman", "pearson", "pearson_spearman")),
    ],
)
def test_the_task_of_own_data(kind: str, metric: str | None, ranked: str, reported: tuple[str, ...]) -> None:
    spec = own_task(kind, metric)
    assert (spec.texts, spec.label, spec.label_names, spec.glue) == (("a", "b"), "grade", (), None)
    assert spec.metric == ranked and spec.regression == (kind == "regression")
    assert spec.metrics == reported


def test_own_labels_keep_their_order() -> None:
    assert own_task(labels=["b", "c", "a"]).label_names == ("b", "c", "a")


def test_predictions_are_classes_or_scores() -> None:
    assert predictions_of(torch.tensor([[0.1, 0.9, 0.2], [3.0, 1.0, 2.0]])).tolist() == [1, 0]
    assert predictions_of(torch.tensor([[0.5], [-2.0]])).tolist() == [0.5, -2.0]


@pytest.mark.parametrize("name", ["cola", "mrpc", "stsb", "mnli"])
def test_scores_of_batches_are_those_of_all_rows_at_once(name: str) -> None:
    spec, generator = TASKS[name], torch.Generator().manual_seed(3)
    count = max(len(spec.label_names), 1)
    logits = torch.randn(50, count, generator=generator)
    labels = torch.randint(0, count, (50,), generator=generator)
    predictions = logits.argmax(-1)
    if spec.regression:
        labels, predictions = torch.randn(50, generator=generator), logits[:, 0]
    scorer = Scorer(spec)
    for rows in (50, 20):  # the second round starts anew
        for start in range(0, rows, 16):
            scorer.add(logits[start : min(start + 16, rows)], labels[start : min(start + 16, rows)])
        found = scorer.scores()
        assert tuple(found) == spec.metrics
        for metric, value in found.items():
            reference = REFERENCES[metric](labels[:rows].numpy(), predictions[:rows].numpy())
            assert value == pytest.approx(reference, abs=1e-6)


@pytest.mark.parametrize("labels", [[0, 2, 1, 1], [0, UNLABELLED, UNLABELLED, 1], [UNLABELLED, 2, 0, 1]])
def test_class_loss_is_cross_entropy_of_the_labelled_rows(labels: list[int]) -> None:
    logits, target = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), torch.tensor(labels)
    known = target != UNLABELLED
    torch.testing.assert_close(label_loss(logits, target), F.cross_entropy(logits[known], target[known]))


@pytest.mark.parametrize("labels", [[0.5, 2.0, -1.0, 0.0], [0.5, NAN, NAN, 3.0], [NAN, 0.0, 1.0, 2.0]])
def test_score_loss_is_squared_error_of_the_labelled_rows(labels: list[float]) -> None:
    logits = torch.randn(4, 1, generator=torch.Generator().manual_seed(0)).requires_grad_()
    target = torch.tensor(labels)
    known, loss = ~target.isnan(), label_loss(logits, target)
    torch.testing.assert_close(loss, F.mse_loss(logits[known, 0], target[known]))
    loss.backward()
    expected = torch.where(known, 2 * (logits.detach()[:, 0] - target) / known.sum(), 0)
    torch.testing.assert_close(logits.grad[:, 0], expected)


@pytest.mark.parametrize(("columns", "unlabelled"), [(3, UNLABELLED), (1, NAN)])
def test_rows_without_any_label_cost_nothing(columns: int, unlabelled: float) -> None:
    logits = torch.ones(2, columns, requires_grad=True)
    loss = label_loss(logits, torch.tensor([unlabelled] * 2))
    loss.backward()
    assert loss.item() == 0 and logits.grad.abs().sum() == 0


def test_f1_says_of_which_label_it_is() -> None:
    assert title("f1", ("fraud", "legit")) == "f1 of legit"
    assert title("f1_macro", ("a", "b")) == "f1_macro" and title("accuracy", ("a", "b")) == "accuracy"
