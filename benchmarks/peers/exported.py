"""A saved model in another format, as `bertnas export` writes it, and as it runs without torch."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from nni_bertnas.data.rows import Rows
from nni_bertnas.deploy.export import export
from nni_bertnas.runtime.classifier import Classifier
from peers import worker
from peers.worker import Job


def _rows(rows: worker.Rows, count: int) -> Rows:
    some = rows.take(list(range(min(count, len(rows.texts)))))
    return Rows(some.texts, some.labels, some.pairs)


def fit(job: Job, folder: Path) -> None:
    """See `peers`; without the gate, as what it loses is what is asked for."""
    shutil.rmtree(folder)
    export(
        Path(job.options["of"]), job.options["to"], folder,
        held_out=_rows(job.dev, 1000), calibration=_rows(job.train, 200), min_agreement=0.0,
    )  # fmt: skip


class _Model:
    def __init__(self, folder: Path) -> None:
        self.classifier = Classifier(folder, threads=1)

    def encode(self, texts: list[str], pairs: list[str] | None) -> Any:
        return texts, pairs

    def answer(self, encoded: Any) -> np.ndarray:
        return self.classifier.probabilities(*encoded)


def load(job: Job, folder: Path) -> _Model:
    """See `peers`."""
    return _Model(folder)
