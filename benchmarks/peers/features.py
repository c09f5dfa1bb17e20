"""A linear classifier or regressor over vectors of texts, chosen by dev; two vectors are compared."""

import pickle
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MaxAbsScaler, StandardScaler

from peers.worker import Job

FILE = "linear.pkl"  # written and read by this benchmark alone
_STRENGTHS = (0.01, 0.1, 1.0, 10.0)
Embed = Callable[[list[str]], Any]  # texts to (texts, width), dense or sparse


def compare(embed: Embed, texts: list[str], pairs: list[str] | None) -> Any:
    """The vectors of texts; of pairs difference, product and cosine, `(rows, 2 * width + 1)`."""
    first = embed(texts)
    if pairs is None:
        return first
    second = embed(pairs)
    if scipy.sparse.issparse(first):
        return scipy.sparse.hstack([abs(first - second), first.multiply(second), _cosine(first, second)]).tocsr()
    return np.concatenate([np.abs(first - second), first * second, _cosine(first, second)], axis=1)


def _cosine(first: Any, second: Any) -> np.ndarray:
    if scipy.sparse.issparse(first):
        inner = np.asarray(first.multiply(second).sum(1))
        lengths = [np.sqrt(np.asarray(one.multiply(one).sum(1))) for one in (first, second)]
    else:
        inner = (first * second).sum(1, keepdims=True)
        lengths = [np.linalg.norm(one, axis=1, keepdims=True) for one in (first, second)]
    found: np.ndarray = inner / np.maximum(lengths[0] * lengths[1], 1e-9)
    return found


def fit_linear(job: Job, embed: Embed, folder: Path) -> None:
    """Fit on train with the strength that does best on dev, and save it."""
    train = compare(embed, job.train.texts, job.train.pairs)
    dev = compare(embed, job.dev.texts, job.dev.pairs)
    scaler = MaxAbsScaler if scipy.sparse.issparse(train) else StandardScaler
    tried = [make_pipeline(scaler(), one).fit(train, _labels(job, job.train.labels)) for one in _models(job)]
    best = max(tried, key=lambda one: one.score(dev, _labels(job, job.dev.labels)))
    # Answers of a regressor lie where labels do: words that few rows have lead a sparse one far out.
    (folder / FILE).write_bytes(pickle.dumps((best, min(job.train.labels), max(job.train.labels))))


def _models(job: Job) -> Iterable[Any]:
    for strength in _STRENGTHS:
        yield LogisticRegression(C=strength, max_iter=1000) if job.classes else Ridge(1 / strength)


def _labels(job: Job, labels: list[float]) -> np.ndarray:
    return np.array(labels, dtype=int if job.classes else float)


class Linear:
    """The fitted one.

    Args:
        job: Of it.
        embed: As it was fitted with.
        folder: Of it.
    """

    def __init__(self, job: Job, embed: Embed, folder: Path) -> None:
        self.classes, self.embed = job.classes, embed
        self.model, *self.range = pickle.loads((folder / FILE).read_bytes())

    def encode(self, texts: list[str], pairs: list[str] | None) -> Any:
        """The texts as they are."""
        return texts, pairs

    def answer(self, encoded: Any) -> np.ndarray:
        """See `Model`."""
        vectors = compare(self.embed, *encoded)
        if self.classes:
            return np.asarray(self.model.predict_proba(vectors))
        return np.clip(self.model.predict(vectors), *self.range)[:, None]
