"""The encoder as it is by sentence-transformers, with a linear classifier over its vectors."""

from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer

from peers.features import Embed, Linear, fit_linear
from peers.worker import Job

ENCODER = "encoder"


def embed(model: SentenceTransformer) -> Embed:
    """Texts to vectors."""
    return lambda texts: model.encode(texts, batch_size=32, show_progress_bar=False)


def fit(job: Job, folder: Path) -> None:
    """See `peers`."""
    model = SentenceTransformer(job.encoder, device="cpu")
    fit_linear(job, embed(model), folder)
    model.save(str(folder / ENCODER))


def load(job: Job, folder: Path) -> Linear:
    """See `peers`."""
    torch.set_num_threads(1)
    return Linear(job, embed(SentenceTransformer(str(folder / ENCODER), device="cpu")), folder)
