"""model2vec with its own training: of classes, or of the similarity of pairs."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from model2vec import StaticModel
from model2vec.distill import distill
from model2vec.train import StaticModelForClassification, StaticModelForPairSimilarity

from peers.worker import Job

_FILE = "model.pt"


def _new(job: Job, static: StaticModel) -> Any:
    if job.classes:
        return StaticModelForClassification.from_static_model(model=static, out_dim=job.num_labels)
    return StaticModelForPairSimilarity.from_static_model(model=static)


def _inputs(job: Job, texts: list[str], pairs: list[str] | None) -> list[Any]:
    if pairs is None:
        return texts
    if job.classes:  # it has no classifier of pairs
        return [f"{a} [SEP] {b}" for a, b in zip(texts, pairs, strict=True)]
    return list(zip(texts, pairs, strict=True))


def fit(job: Job, folder: Path) -> None:
    """See `peers`."""
    torch.set_num_threads(2)
    static = distill(job.encoder, device="cpu")
    model = _new(job, static)
    read = str if job.classes else float
    low, high = min(job.train.labels), max(job.train.labels)
    wanted = [
        [read(int(one)) if job.classes else (one - low) / (high - low) for one in rows.labels]
        for rows in (job.train, job.dev)
    ]
    train, dev = (_inputs(job, rows.texts, rows.pairs) for rows in (job.train, job.dev))
    model.fit(train, wanted[0], X_val=dev, y_val=wanted[1], device="cpu", random_seed=job.seed)
    torch.save(model, folder / _FILE)


class _Model:
    def __init__(self, job: Job, folder: Path) -> None:
        torch.set_num_threads(1)
        self.job, self.model = job, torch.load(folder / _FILE, weights_only=False)
        if job.classes:
            self.order = np.argsort([int(one) for one in self.model.classes])

    def encode(self, texts: list[str], pairs: list[str] | None) -> list[Any]:
        return _inputs(self.job, texts, pairs)

    def answer(self, encoded: Any) -> np.ndarray:
        if self.job.classes:
            return np.asarray(self.model.predict_proba(encoded))[:, self.order]
        return np.asarray(self.model.predict(encoded)).reshape(-1, 1)


def load(job: Job, folder: Path) -> _Model:
    """See `peers`."""
    return _Model(job, folder)
