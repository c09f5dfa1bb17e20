"""model2vec: one vector a word piece, distilled from the encoder without data, with a linear classifier."""

from pathlib import Path

from model2vec import StaticModel
from model2vec.distill import distill

from peers.features import Linear, fit_linear
from peers.worker import Job

_MODEL = "static"


def fit(job: Job, folder: Path) -> None:
    """See `peers`."""
    model = distill(job.encoder, device="cpu")
    model.save_pretrained(str(folder / _MODEL))
    fit_linear(job, model.encode, folder)


def load(job: Job, folder: Path) -> Linear:
    """See `peers`."""
    return Linear(job, StaticModel.from_pretrained(str(folder / _MODEL)).encode, folder)
