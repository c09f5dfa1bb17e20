"""Probes: a linear classifier on every edge of the teacher; its answers are soft labels for the block that ends there.

AdaBERT (Chen et al., arXiv 2001.04246, section 3.1): the teacher's layers are probed with softmax classifiers, and each
is weighed by how good it is. A cell is trained so that the probe reads the same out of what it makes as out of the
teacher's hidden state.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from nni_bertnas.artifacts import load_arrays
from nni_bertnas.data.batches import make_loader
from nni_bertnas.data.rows import UNLABELLED
from nni_bertnas.store.reader import FeatureDataset, FeatureStore

_RIDGE = 1e-2  # of scores, share of the mean variance
_PENALTY = 1e-2  # of classes, inverse of scikit-learn's C


@dataclass(frozen=True, kw_only=True)
class Probes:
    """Linear probes of some edges.

    Attributes:
        edges: Layer numbers.
        weights: `(edges, num_labels, features)`; one label for scores.
        biases: `(edges, num_labels)`.
        quality: How much each counts, `(edges,)`, together 1.
        separate: Whether the texts of a pair are read separately, and so compared.
    """

    edges: tuple[int, ...]
    weights: Tensor
    biases: Tensor
    quality: Tensor
    separate: bool

    def of(self, edges: Sequence[int]) -> "Probes":
        """Those of some of the edges, in that order; together they count 1 again."""
        numbers = [self.edges.index(edge) for edge in edges]
        quality = self.quality[numbers] / self.quality[numbers].sum()
        return Probes(
            edges=tuple(edges), weights=self.weights[numbers], biases=self.biases[numbers], quality=quality,
            separate=self.separate,
        )  # fmt: skip

    def read(self, number: int, hidden: Tensor, mask: Tensor) -> Tensor:
        """What a probe says of hidden states.

        Args:
            number: Of the probe.
            hidden: `(batch, seq, hidden)`, or `(2 * batch, side, hidden)` of pairs read separately.
            mask: Likewise, bool.

        Returns:
            `(batch, num_labels)`.
        """
        features = probe_features(hidden, mask, self.separate)
        return F.linear(features, self.weights[number].to(features), self.biases[number].to(features))

    def save(self, path: Path) -> None:
        """Write them, ending .npz."""
        np.savez(
            path, edges=self.edges, weights=self.weights.numpy(), biases=self.biases.numpy(),
            quality=self.quality.numpy(), separate=self.separate,
        )  # fmt: skip

    @classmethod
    def load(cls, path: Path) -> "Probes":
        """Read them."""
        names = ("weights", "biases", "quality")
        arrays = load_arrays(path, (*names, "edges", "separate"), "bertnas probes STUDY")
        weights, biases, quality = (torch.from_numpy(arrays[name]) for name in names)
        return cls(
            edges=tuple(arrays["edges"].tolist()), weights=weights, biases=biases, quality=quality,
            separate=bool(arrays["separate"]),
        )  # fmt: skip


def probe_features(hidden: Tensor, mask: Tensor, separate: bool) -> Tensor:
    """The mean over unmasked positions; of pairs read separately, difference and product of the two means.

    Args:
        hidden: `(batch, seq, hidden)`, or `(2 * batch, side, hidden)`.
        mask: Likewise, bool.
        separate: Which of the two.

    Returns:
        `(batch, hidden)`, or `(batch, 2 * hidden)`.
    """
    keep = mask.unsqueeze(-1).to(hidden.dtype)
    mean = (hidden * keep).sum(1) / keep.sum(1).clamp(min=1)
    if not separate:
        return mean
    first, second = mean.chunk(2)
    return torch.cat([(first - second).abs(), first * second], dim=1)


@torch.no_grad()
def _collect(store: FeatureStore, edges: Sequence[int], rows: int | None) -> tuple[list[np.ndarray], np.ndarray]:
    """Features of every edge `(labelled, features)` and the labels, of rows that have a label."""
    labels = store.labels
    known = ~np.isnan(labels) if labels.dtype.kind == "f" else labels != UNLABELLED
    chosen = np.random.default_rng(0).permutation(store.rows[known[store.rows]])[:rows]
    found: list[list[Tensor]] = [[] for _ in edges]
    targets = []
    for batch in make_loader(FeatureDataset(store, edges, tokens=True, rows=chosen), 128, shuffle=False):
        targets.append(batch.labels)
        for some, hidden in zip(found, batch.hidden, strict=True):
            some.append(probe_features(hidden, batch.hidden_mask, store.index.separate))
    return [torch.cat(some).double().numpy() for some in found], torch.cat(targets).numpy()


def fit_probes(train: FeatureStore, dev: FeatureStore, edges: Sequence[int], num_labels: int, rows: int) -> Probes:
    """Fit a probe to every edge, and say by dev how much it counts.

    Of classes that is the geometric mean of the probability of the right one (AdaBERT's weight of a row, over all
    rows), of scores the share of their variance that it explains.

    Args:
        train: Whose labelled rows they are fitted to.
        dev: All labelled.
        edges: Layers.
        num_labels: 1 for scores.
        rows: Of train at most.
    """
    (own, labels), (held, truth) = _collect(train, edges, rows), _collect(dev, edges, None)
    weights, biases, quality = [], [], []
    for x, dev_x in zip(own, held, strict=True):
        centre, spread = x.mean(axis=0), x.std(axis=0).clip(min=1e-6)
        slopes, intercepts = _fit((x - centre) / spread, labels, num_labels)
        slopes = slopes / spread
        intercepts = intercepts - slopes @ centre
        weights.append(slopes)
        biases.append(intercepts)
        quality.append(_quality(dev_x @ slopes.T + intercepts, truth))
    counts = np.array(quality).clip(min=1e-3)
    return Probes(
        edges=tuple(edges),
        weights=torch.tensor(np.stack(weights), dtype=torch.float32),
        biases=torch.tensor(np.stack(biases), dtype=torch.float32),
        quality=torch.tensor(counts / counts.sum(), dtype=torch.float32),
        separate=train.index.separate,
    )


def _fit(x: np.ndarray, labels: np.ndarray, num_labels: int) -> tuple[np.ndarray, np.ndarray]:
    """Slopes `(num_labels, features)` and intercepts `(num_labels,)` for standardised features."""
    if num_labels == 1:
        ridge = _RIDGE * len(x) * np.eye(x.shape[1])
        slopes = np.linalg.solve(x.T @ x + ridge, x.T @ (labels - labels.mean()))
        return slopes[None], np.array([labels.mean()])
    from sklearn.linear_model import LogisticRegression  # takes a second to load

    model = LogisticRegression(C=1 / (_PENALTY * len(x)), max_iter=500).fit(x, labels)
    slopes, intercepts = model.coef_, model.intercept_
    if num_labels == 2:  # one row for both classes
        slopes, intercepts = np.concatenate([-slopes, slopes]) / 2, np.concatenate([-intercepts, intercepts]) / 2
    return slopes, intercepts


def _quality(answers: np.ndarray, truth: np.ndarray) -> float:
    if answers.shape[1] == 1:
        return float(1 - np.square(answers[:, 0] - truth).mean() / truth.var())
    logits = torch.from_numpy(answers)
    return float(torch.exp(-F.cross_entropy(logits, torch.from_numpy(truth))))
