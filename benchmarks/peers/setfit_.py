"""SetFit: the encoder fine-tuned on pairs of a few labelled rows, then a linear classifier."""

import random
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from setfit import SetFitModel, Trainer, TrainingArguments

from peers.worker import Job

_MODEL = "setfit"


def fit(job: Job, folder: Path) -> None:
    """See `peers`."""
    torch.set_num_threads(2)
    chance = random.Random(job.seed)
    rows: list[int] = []
    for label in range(job.num_labels):
        mine = [number for number, one in enumerate(job.train.labels) if one == label]
        rows += chance.sample(mine, min(job.options["rows"], len(mine)))
    some = job.train.take(rows)
    model = SetFitModel.from_pretrained(job.encoder, device="cpu")
    with tempfile.TemporaryDirectory() as place:
        options = TrainingArguments(output_dir=place, batch_size=16, num_epochs=1, seed=job.seed, report_to="none",
                                    save_strategy="no", max_steps=400)  # fmt: skip
        data = Dataset.from_dict({"text": some.texts, "label": [int(one) for one in some.labels]})
        Trainer(model=model, args=options, train_dataset=data).train()
    model.save_pretrained(str(folder / _MODEL))


class _Model:
    def __init__(self, folder: Path) -> None:
        torch.set_num_threads(1)
        self.model = SetFitModel.from_pretrained(str(folder / _MODEL), device="cpu")

    def encode(self, texts: list[str], pairs: list[str] | None) -> list[str]:
        return texts

    def answer(self, encoded: Any) -> np.ndarray:
        return np.asarray(self.model.predict_proba(encoded, as_numpy=True, show_progress_bar=False))


def load(job: Job, folder: Path) -> _Model:
    """See `peers`."""
    return _Model(folder)
