"""Whether an exported model still answers as the model it was made from."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from nni_bertnas.runtime.manifest import Kind

CLOSE = 0.1  # of a score, in standard deviations of the model's own; then the two correlate with .995 and more


@dataclass(frozen=True)
class Agreement:
    """How two models agree on the same rows.

    Attributes:
        num_rows: How many.
        share: Of the rows, those with the same answer: the same class, the same labels, or a score within `CLOSE`.
        difference: The greatest, of probabilities or scores.
        by_label: The share of each label among the rows to which the first model gives it; of scores none.
    """

    num_rows: int
    share: float
    difference: float
    by_label: dict[str, float]

    def figures(self) -> dict[str, float]:
        """What is kept of it."""
        return {name: value for name, value in asdict(self).items() if name != "by_label"}

    def worst(self, least: float) -> str:
        """In words, the labels that suffer most, those below `least`; empty where there are none."""
        low = sorted((share, name) for name, share in self.by_label.items() if share < least)
        return ", ".join(f"{name} {share:.1%}" for share, name in low[:5])


def agreement(before: np.ndarray, after: np.ndarray, kind: Kind, labels: Sequence[str]) -> Agreement:
    """Compare what two models give to the same rows.

    Args:
        before: Probabilities or scores of the model itself, `(num_rows, num_labels)`, at least one row.
        after: Of the exported one, likewise.
        kind: Of the answers.
        labels: Names of the outputs.
    """
    difference = float(np.abs(before - after).max())
    if kind == "score":
        same = np.abs(before - after)[:, 0] <= CLOSE * before.std()
        return Agreement(len(before), float(same.mean()), difference, {})
    if kind == "labels":
        given, same = before > 0.5, ((before > 0.5) == (after > 0.5)).all(1)
    else:
        given = np.eye(before.shape[1], dtype=bool)[before.argmax(1)]
        same = before.argmax(1) == after.argmax(1)
    by_label: dict[str, Any] = {
        name: float(same[given[:, number]].mean()) for number, name in enumerate(labels) if given[:, number].any()
    }
    return Agreement(len(before), float(same.mean()), difference, by_label)
