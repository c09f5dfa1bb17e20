"""What predictions say, in numbers: intervals, calibration, counts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

_LEVEL = 0.95
RESAMPLES = 1000


@dataclass(frozen=True)
class Interval:
    """Where a value lies with 95 % confidence.

    Attributes:
        low: Lower end.
        high: Upper end.
    """

    low: float
    high: float


def wilson(right: float, total: int) -> Interval:
    """Wilson's score interval of a share (Wilson 1927); of nothing it is all that a share can be.

    Args:
        right: How many are right.
        total: Of how many.
    """
    if not total:
        return Interval(0.0, 1.0)
    z = NormalDist().inv_cdf((1 + _LEVEL) / 2)
    share, spread = right / total, z * z / total
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * (share * (1 - share) / total + spread / (4 * total)) ** 0.5
    return Interval(max(0.0, middle - half), min(1.0, middle + half))


def paired_bootstrap(
    labels: np.ndarray, teacher: np.ndarray, student: np.ndarray, compute: Callable[[np.ndarray, np.ndarray], float]
) -> tuple[Interval, Interval, Interval]:
    """Percentile intervals (Efron) of two scores and of their difference, from the same resampled rows for both.

    Args:
        labels: `(num_rows, …)`.
        teacher: Predictions, likewise.
        student: Likewise.
        compute: A metric of labels and predictions.

    Returns:
        Of the teacher, of the student, and of student less teacher.
    """
    generator = np.random.default_rng(0)
    scores = np.empty((RESAMPLES, 2))
    for number in range(RESAMPLES):
        rows = generator.integers(0, len(labels), len(labels))
        scores[number] = [compute(labels[rows], side[rows]) for side in (teacher, student)]
    tail = (1 - _LEVEL) / 2
    columns = (scores[:, 0], scores[:, 1], scores[:, 1] - scores[:, 0])
    low, high = np.quantile(np.stack(columns), (tail, 1 - tail), axis=1)
    first, second, third = (Interval(float(a), float(b)) for a, b in zip(low, high, strict=True))
    return first, second, third


@dataclass(frozen=True)
class Bin:
    """Predictions that are about as sure.

    Attributes:
        count: How many.
        confidence: Their mean confidence.
        share: Of them that are right.
    """

    count: int
    confidence: float
    share: float


def reliability_bins(confidence: np.ndarray, right: np.ndarray, bins: int = 10) -> list[Bin]:
    """Predictions by confidence, 0 to 1, in equally wide bins; empty ones are left out.

    Args:
        confidence: `(num_predictions,)`.
        right: Likewise, 0 or 1.
        bins: How many.
    """
    places = np.minimum((confidence * bins).astype(int), bins - 1)
    groups = [places == place for place in range(bins)]
    return [Bin(int(g.sum()), float(confidence[g].mean()), float(right[g].mean())) for g in groups if g.any()]


def calibration_error(bins: Sequence[Bin]) -> float:
    """Expected calibration error (Guo et al., arXiv 1706.04599, eq. 3): |share - confidence|, weighted by count."""
    total = sum(one.count for one in bins)
    return sum(one.count * abs(one.share - one.confidence) for one in bins) / total


def confusion(labels: np.ndarray, predictions: np.ndarray, count: int) -> np.ndarray:
    """How often each class, by row, was called each class, by column: `(count, count)`.

    Args:
        labels: Class numbers `(num_rows,)`.
        predictions: Likewise.
        count: Of classes.
    """
    found = np.zeros((count, count), dtype=int)
    np.add.at(found, (labels.astype(int), predictions.astype(int)), 1)
    return found


def label_counts(labels: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    """Of every label of sets: in both, predicted alone, in the data alone, `(num_labels, 3)`.

    Args:
        labels: `(num_rows, num_labels)`, 1 for those in the set.
        predictions: Likewise.
    """
    labels, predictions = labels.astype(bool), predictions.astype(bool)
    both, more, missing = labels & predictions, ~labels & predictions, labels & ~predictions
    return np.stack([one.sum(0) for one in (both, more, missing)], axis=1)
