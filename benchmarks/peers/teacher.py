"""A saved model of transformers, ours or the teacher, as `bertnas predict` runs it."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nni_bertnas.data.batches import Batch, model_inputs
from nni_bertnas.data.rows import Rows, unlabelled
from nni_bertnas.data.tokens import tokenize
from nni_bertnas.deploy.predict import load_predictor
from peers.worker import Job


def fit(job: Job, folder: Path) -> None:
    """See `peers`."""
    shutil.copytree(job.said["teacher"], folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("result.json"))


class _Model:
    def __init__(self, folder: Path) -> None:
        torch.set_num_threads(1)
        self.predictor = load_predictor(folder)
        self.predictor.model.to("cpu")

    def encode(self, texts: list[str], pairs: list[str] | None) -> Batch:
        rows = Rows(texts, unlabelled(len(texts), regression=False), pairs)
        return tokenize(self.predictor.tokenizer, rows, self.predictor.max_length).batch(range(len(texts)))

    @torch.inference_mode()
    def answer(self, encoded: Any) -> np.ndarray:
        logits = self.predictor.model(**model_inputs(self.predictor.model, encoded)).logits.double()
        return (logits.softmax(-1) if logits.shape[1] > 1 else logits).numpy()


def load(job: Job, folder: Path) -> _Model:
    """See `peers`."""
    return _Model(folder)
