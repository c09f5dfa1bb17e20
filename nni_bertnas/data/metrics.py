"""What predictions are worth. One row of METRICS each."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

OF_LABEL = "f1 of "  # before the name of one label of sets
Numbers = Sequence[float] | np.ndarray


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One metric.

    Attributes:
        compute: Takes labels and predictions `(num_rows,)`; of sets of labels `(num_rows, num_labels)`, 1 for those in
            the set.
        of_scores: Whether both are scores; otherwise they are class numbers, or sets.
        of_sets: Whether both are sets of labels.
        two_labels: Whether it is defined for two labels alone.
    """

    compute: Callable[[Numbers, Numbers], float]
    of_scores: bool = False
    of_sets: bool = False
    two_labels: bool = False

    @property
    def kind(self) -> str:
        """What it is of, by the name that `task.custom.kind` has for it."""
        return "regression" if self.of_scores else "multi_label" if self.of_sets else "classification"


def _sklearn(name: str, labels: Numbers, predictions: Numbers, **options: Any) -> float:
    from sklearn import metrics  # takes a second to load, and most processes score nothing

    return float(getattr(metrics, name)(labels, predictions, **options))


def _scipy(name: str, labels: Numbers, predictions: Numbers) -> float:
    from scipy import stats  # likewise

    if np.ptp(labels) == 0 or np.ptp(predictions) == 0:  # undefined; a model that learnt nothing is worth 0
        return 0.0
    return float(getattr(stats, name)(labels, predictions)[0])


def accuracy(labels: Numbers, predictions: Numbers) -> float:
    """Share of right predictions, 0 to 1."""
    return _sklearn("accuracy_score", labels, predictions)


def f1(labels: Numbers, predictions: Numbers) -> float:
    """F1 of class 1, 0 to 1; 0 where it is neither there nor predicted."""
    return _sklearn("f1_score", labels, predictions, zero_division=0)


def f1_macro(labels: Numbers, predictions: Numbers) -> float:
    """Unweighted mean of every class's F1, 0 to 1."""
    return _sklearn("f1_score", labels, predictions, average="macro", zero_division=0)


def accuracy_f1(labels: Numbers, predictions: Numbers) -> float:
    """Mean of accuracy and F1, as the GLUE benchmark averages MRPC and QQP (arXiv 1804.07461)."""
    return (accuracy(labels, predictions) + f1(labels, predictions)) / 2


def matthews(labels: Numbers, predictions: Numbers) -> float:
    """Matthews correlation, -1 to 1; 0 for a constant prediction."""
    return _sklearn("matthews_corrcoef", labels, predictions)


def micro_f1(labels: Numbers, predictions: Numbers) -> float:
    """F1 of all labels of all rows together, 0 to 1."""
    return _sklearn("f1_score", labels, predictions, average="micro", zero_division=0)


def f1_by_label(labels: np.ndarray, predictions: np.ndarray) -> list[float]:
    """F1 of every label of sets, both `(num_rows, num_labels)`, 0 to 1; 0 where it is neither there nor predicted."""
    return [f1(labels[:, one], predictions[:, one]) for one in range(labels.shape[1])]


def pearson(labels: Numbers, predictions: Numbers) -> float:
    """Pearson correlation, -1 to 1; 0 for a constant prediction."""
    return _scipy("pearsonr", labels, predictions)


def spearman(labels: Numbers, predictions: Numbers) -> float:
    """Spearman rank correlation, -1 to 1; 0 for a constant prediction."""
    return _scipy("spearmanr", labels, predictions)


def pearson_spearman(labels: Numbers, predictions: Numbers) -> float:
    """Mean of Pearson and Spearman, as the GLUE benchmark averages STS-B (arXiv 1804.07461)."""
    return (pearson(labels, predictions) + spearman(labels, predictions)) / 2


def standard_error(name: str, labels: np.ndarray, predictions: np.ndarray, draws: int = 100) -> float:
    """By how much a metric would differ on other rows: its spread over bootstrap samples (Efron 1979), always the same.

    Args:
        name: A key of METRICS.
        labels: `(num_rows,)`; of sets `(num_rows, num_labels)`.
        predictions: Likewise.
        draws: Samples.
    """
    samples = np.random.default_rng(0).integers(0, len(labels), (draws, len(labels)))
    return float(np.std([METRICS[name].compute(labels[rows], predictions[rows]) for rows in samples]))


def title(name: str, label_names: Sequence[str]) -> str:
    """A metric by name, with the label that it is of where it is of one."""
    return f"{name} of {label_names[1]}" if name == "f1" and len(label_names) == 2 else name


METRICS: Mapping[str, Metric] = {
    "accuracy": Metric(compute=accuracy),
    "f1": Metric(compute=f1, two_labels=True),
    "f1_macro": Metric(compute=f1_macro),
    "accuracy_f1": Metric(compute=accuracy_f1, two_labels=True),
    "matthews": Metric(compute=matthews),
    "micro_f1": Metric(compute=micro_f1, of_sets=True),
    "macro_f1": Metric(compute=f1_macro, of_sets=True),
    "exact_match": Metric(compute=accuracy, of_sets=True),  # of a set as a whole
    "pearson": Metric(compute=pearson, of_scores=True),
    "spearman": Metric(compute=spearman, of_scores=True),
    "pearson_spearman": Metric(compute=pearson_spearman, of_scores=True),
}
