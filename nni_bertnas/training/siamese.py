"""A teacher that compares the vectors of two texts, alone or beside the cross-encoder.

Sentence vectors are made of every text by itself, so that the answer for any pair of texts costs a dot product
(Sentence-BERT, Reimers and Gurevych, arXiv 1908.10084).
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nni_bertnas.artifacts import load_arrays
from nni_bertnas.data.rows import UNLABELLED

_DEGREE = 3  # of the polynomial from cosine to score
_GRID = 21  # shares that are tried, from all to nothing


@dataclass(frozen=True)
class Siamese:
    """How the answers for pairs come out of vectors and of the cross-encoder's logits.

    Attributes:
        weights: Of scores, the polynomial's, highest power first `(4,)`; of classes `(features + 1, num_labels)`, the
            last row the biases.
        share: Of the cross-encoder in the answer, 0 to 1.
        scales: What divides the logits of cross-encoder and comparison of classes, `(2,)`; of scores, intercept and
            slope of the cross-encoder's.
    """

    weights: np.ndarray
    share: float
    scales: np.ndarray

    def __call__(self, logits: np.ndarray, vectors: np.ndarray) -> np.ndarray:
        """The answers.

        Args:
            logits: The cross-encoder's, `(rows, num_labels)`; `(rows, 0)` where there is none.
            vectors: Of both texts side by side, `(rows, 2 * hidden)`.

        Returns:
            `(rows, num_labels)`; no numbers where a text is missing.
        """
        own = self._compare(vectors)
        if self.share:
            other = logits.astype(np.float64)
            if self.weights.ndim == 1:
                other = self.scales[0] + self.scales[1] * other
            else:
                own, other = own / self.scales[1], other / self.scales[0]
            own = self.share * other + (1 - self.share) * own
        missing = np.stack([~side.any(axis=1) for side in np.split(vectors, 2, axis=1)])
        own[missing.any(axis=0)] = np.nan
        return own.astype(np.float32)

    def _compare(self, vectors: np.ndarray) -> np.ndarray:
        if self.weights.ndim == 1:
            return np.polyval(self.weights, cosines(vectors))[:, None]
        found: np.ndarray = features(vectors) @ self.weights[:-1] + self.weights[-1]
        return found

    def save(self, path: Path) -> None:
        """Write it, ending .npz."""
        np.savez(path, weights=self.weights, share=self.share, scales=self.scales)

    @classmethod
    def load(cls, path: Path) -> "Siamese":
        """Read it."""
        arrays = load_arrays(path, ("weights", "share", "scales"), "bertnas features STUDY")
        return cls(arrays["weights"], float(arrays["share"]), arrays["scales"])


def cosines(vectors: np.ndarray) -> np.ndarray:
    """Of the two halves of every row, `(rows, 2 * hidden)` -> `(rows,)`."""
    first, second = np.split(vectors.astype(np.float64), 2, axis=1)
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    found: np.ndarray = (first * second).sum(axis=1) / norms.clip(min=1e-12)
    return found


def features(vectors: np.ndarray) -> np.ndarray:
    """Difference, product and cosine of the halves, `(rows, 2 * hidden)` -> `(rows, 2 * hidden + 1)`."""
    first, second = np.split(vectors.astype(np.float64), 2, axis=1)
    return np.concatenate([np.abs(first - second), first * second, cosines(vectors)[:, None]], axis=1)


@dataclass(frozen=True)
class Answered:
    """What a comparison is fitted on.

    Attributes:
        vectors: `(rows, 2 * hidden)`.
        logits: The cross-encoder's, `(rows, num_labels)`; `(rows, 0)` where there is none.
        labels: `(rows,)`.
    """

    vectors: np.ndarray
    logits: np.ndarray
    labels: np.ndarray

    def labelled(self) -> "Answered":
        """The rows that have a label."""
        known = ~np.isnan(self.labels) if self.labels.dtype.kind == "f" else self.labels != UNLABELLED
        return Answered(self.vectors[known], self.logits[known], self.labels[known])


def fit_siamese(train: Answered, dev: Answered, num_labels: int, *, both: bool) -> Siamese:
    """Fit the comparison to train, and its share beside the cross-encoder to dev, which neither has seen.

    Args:
        train: Some of its rows may have no label.
        dev: All labelled.
        num_labels: 1 for scores.
        both: Whether the cross-encoder has a share.
    """
    train = train.labelled()
    if num_labels == 1:
        return _fit_scores(train, dev, both)
    from sklearn.linear_model import LogisticRegression  # takes a second to load

    x = features(train.vectors)
    centre, spread = x.mean(axis=0), x.std(axis=0).clip(min=1e-9)
    model = LogisticRegression(C=0.01, max_iter=500).fit((x - centre) / spread, train.labels)
    slopes, biases = model.coef_, model.intercept_
    if num_labels == 2:  # one row for both classes
        slopes, biases = np.concatenate([-slopes, slopes]) / 2, np.concatenate([-biases, biases]) / 2
    slopes = slopes / spread
    weights = np.concatenate([slopes.T, (biases - slopes @ centre)[None]])
    alone = Siamese(weights, 0.0, np.ones(2))
    if not both:
        return alone
    scales = np.array([_temperature(dev.logits, dev.labels), _temperature(alone._compare(dev.vectors), dev.labels)])
    tries = [Siamese(weights, share, scales) for share in np.linspace(0, 1, _GRID)]
    return min(tries, key=lambda one: _surprise(one(dev.logits, dev.vectors), dev.labels))


def _fit_scores(train: Answered, dev: Answered, both: bool) -> Siamese:
    weights = np.polyfit(cosines(train.vectors), train.labels, _DEGREE)
    if not both:
        return Siamese(weights, 0.0, np.array([0.0, 1.0]))
    slope, intercept = np.polyfit(dev.logits[:, 0].astype(np.float64), dev.labels, 1)
    tries = [Siamese(weights, share, np.array([intercept, slope])) for share in np.linspace(0, 1, _GRID)]
    return min(tries, key=lambda one: float(np.square(one(dev.logits, dev.vectors)[:, 0] - dev.labels).mean()))


def _surprise(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean cross-entropy."""
    values = logits.astype(np.float64)
    values = values - values.max(axis=1, keepdims=True)
    chosen = values[np.arange(len(labels)), labels.astype(int)]
    return float((np.log(np.exp(values).sum(axis=1)) - chosen).mean())


def _temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """What divides logits so that they surprise least (Guo et al., arXiv 1706.04599)."""
    return min(np.geomspace(0.2, 10, 60).tolist(), key=lambda value: _surprise(logits / value, labels))
