"""What teacher and student say of the rows of a split, predicted once and kept."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nni_bertnas.artifacts import file_fingerprint, fingerprint
from nni_bertnas.data.label_sets import members
from nni_bertnas.data.metrics import METRICS
from nni_bertnas.data.models import weights_fingerprint
from nni_bertnas.data.rows import Rows
from nni_bertnas.data.splits import SPLIT_SEED
from nni_bertnas.data.task_data import data_fingerprint
from nni_bertnas.deploy.predict import load_predictor
from nni_bertnas.report.page.kept import kept
from nni_bertnas.stages.run import Run

MOST_ROWS = 5_000  # of a split; a share of so many is known to 1.4 points
_DIGITS = 7  # of a kept number, as many as 32 bits have: scores of a teacher that learnt little are all alike


@dataclass(frozen=True, kw_only=True, eq=False)
class Predictions:
    """What two models say of the same rows.

    Attributes:
        split: Its name.
        rows: That were predicted.
        total: Rows that the split has.
        labels: Class numbers or scores `(num_rows,)`; of sets `(num_rows, num_labels)`, 1 for those in the set.
        sides: By teacher and student: probabilities `(num_rows, num_labels)`; scores `(num_rows, 1)`.
        kind: classification, regression or multi_label.
    """

    split: str
    rows: Rows
    total: int
    labels: np.ndarray
    sides: Mapping[str, np.ndarray]
    kind: str

    def answers(self, side: str) -> np.ndarray:
        """What a model says, of the shape of the labels."""
        found = self.sides[side]
        if self.kind == "regression":
            return found[:, 0]
        return found.argmax(1) if self.kind == "classification" else (found > 0.5).astype(int)

    def constant(self, metric: str) -> float:
        """What the best one answer to all rows would score: a class, the mean, or of sets the commonest or such labels.

        Such labels are the so many that most rows have.
        """
        answers: Iterable[Any]
        if self.kind == "regression":
            answers = [self.labels.mean()]
        elif self.kind == "classification":
            answers = np.unique(self.labels)
        else:
            sets, counts = np.unique(self.labels, axis=0, return_counts=True)
            places = (-self.labels.sum(0)).argsort(kind="stable").argsort()
            answers = [sets[counts.argmax()], *(places < count for count in range(1, len(places) + 1))]
        return max(METRICS[metric].compute(self.labels, np.zeros_like(self.labels) + one) for one in answers)


def predict_splits(run: Run, student: Path, splits: list[str], kind: str) -> dict[str, Predictions]:
    """Predictions of the saved teacher and a saved student; what was predicted before is read.

    Args:
        run: Of the study.
        student: The folder of the saved model.
        splits: To be predicted; of large ones a fixed random part.
        kind: See :class:`Predictions`.

    Raises:
        ConfigError: A model cannot be loaded.
    """
    folders = {"teacher": run.folder("teacher"), "student": student}
    taken = {name: _part(len(run.data.splits[name])) for name in splits}
    marks = [weights_fingerprint(str(folder)) for folder in folders.values()]
    mark = fingerprint(data_fingerprint(run.study.task), marks, MOST_ROWS, splits, _DIGITS, _code())

    def predict() -> dict[str, dict[str, list[list[float]]]]:
        found: dict[str, dict[str, list[list[float]]]] = {name: {} for name in splits}
        for side, folder in folders.items():
            predictor = load_predictor(folder)
            for name, rows in taken.items():
                values = predictor.probabilities(run.data.splits[name].take(rows))
                found[name][side] = [[float(f"{one:.{_DIGITS}g}") for one in row] for row in values]
        return found

    found = kept(run.root, "predictions", mark, predict)
    return {name: _gathered(run, name, taken[name], found[name], kind) for name in splits}


def _part(count: int) -> np.ndarray:
    """The numbers of the rows that are predicted, rising."""
    generator = np.random.default_rng(SPLIT_SEED)
    every = np.arange(count)
    return every if count <= MOST_ROWS else np.sort(generator.choice(every, MOST_ROWS, replace=False))


def _code() -> str:
    """Of what predicts, so that predictions of another version are not taken for this one's."""
    return file_fingerprint(Path(__file__).parents[2] / "deploy" / "predict.py")


def _gathered(run: Run, name: str, taken: np.ndarray, found: Mapping[str, list[list[float]]], kind: str) -> Predictions:
    rows = run.data.splits[name].take(taken)
    labels = np.asarray(rows.labels)
    sides = {side: np.asarray(values) for side, values in found.items()}
    if kind == "multi_label":
        count = len(run.data.label_names)
        labels = np.zeros((len(rows), count), dtype=int)
        for number, label in enumerate(rows.labels):
            labels[number, members(label, count)] = 1
    return Predictions(split=name, rows=rows, total=len(run.data.splits[name]), labels=labels, sides=sides, kind=kind)
