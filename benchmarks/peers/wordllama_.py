"""wordllama's word vectors, which come in its package, with a linear classifier."""

import importlib.util
import shutil
from pathlib import Path

import numpy as np
from wordllama import WordLlama

from peers.features import Embed, Linear, fit_linear
from peers.worker import Job


def _open() -> Embed:
    model = WordLlama.load(dim=256, disable_download=True)
    return lambda texts: np.asarray(model.embed(texts))


def fit(job: Job, folder: Path) -> None:
    """See `peers`."""
    fit_linear(job, _open(), folder)
    spec = importlib.util.find_spec("wordllama")
    assert spec is not None and spec.submodule_search_locations
    for path in Path(spec.submodule_search_locations[0]).rglob("*256*.safetensors"):
        shutil.copy(path, folder)  # for its size; it is read from the package


def load(job: Job, folder: Path) -> Linear:
    """See `peers`."""
    return Linear(job, _open(), folder)
