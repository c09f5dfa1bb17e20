"""Intervals of scores, and of the difference of teacher and student, as far as rows or predictions tell."""

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from nni_bertnas.artifacts import fingerprint
from nni_bertnas.data.metrics import METRICS
from nni_bertnas.report.page.kept import kept
from nni_bertnas.report.page.predictions import Predictions
from nni_bertnas.report.page.statistics import RESAMPLES, Interval, paired_bootstrap, wilson

_SHARES = ("accuracy", "exact_match")  # metrics that are the share of the rows that are right


@dataclass(frozen=True)
class Intervals:
    """Of the scores on one split; None where nothing tells.

    Attributes:
        teacher: Of its score.
        student: Likewise.
        difference: Of student less teacher.
    """

    teacher: Interval | None
    student: Interval | None
    difference: Interval | None


def interval_of(metric: str, score: float, rows: int) -> Interval | None:
    """Of a score whose rows are right or wrong each; None for metrics of which the score alone tells none."""
    return wilson(score * rows, rows) if metric in _SHARES else None


def score_intervals(
    root: Path, metric: str, scores: tuple[float, float], rows: int, own: Predictions | None
) -> Intervals:
    """Of teacher and student on one split; of shares Wilson's, else from rows drawn anew, which is kept.

    Args:
        root: The study's folder.
        metric: A key of METRICS.
        scores: Of teacher and student on all rows.
        rows: Of the split.
        own: Predictions for it; None where there are none.
    """
    teacher, student = (interval_of(metric, score, rows) for score in scores)
    if own is None:
        return Intervals(teacher, student, None)
    answers = [own.answers(side) for side in ("teacher", "student")]
    if metric in _SHARES:  # a mean of hits takes a thousandth of the time
        hits = [_hits(own.labels, one) for one in answers]
        return Intervals(
            teacher, student, paired_bootstrap(own.labels, hits[0], hits[1], lambda _, hit: float(hit.mean()))[2]
        )

    def draw() -> list[dict[str, float]]:
        found = paired_bootstrap(own.labels, answers[0], answers[1], METRICS[metric].compute)
        return [asdict(one) for one in found]

    mark = fingerprint(metric, RESAMPLES, *(one.tolist() for one in (own.labels, *answers)))
    return Intervals(*(Interval(**one) for one in kept(root, f"intervals-{own.split}", mark, draw)))


def _hits(labels: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """Which rows are right, `(num_rows,)`."""
    same = labels == answers
    hits: np.ndarray = same if same.ndim == 1 else same.all(1)
    return hits
