"""wordllama's word vectors, which come in its package, with a linear classifier."""

import shutil
from pathlib import Path

import numpy as np
import wordllama

from peers.features import Embed, Linear, fit_linear
from peers.worker import Job

# It looks for its tokenizer in a folder `tokenizer` of its own, where it lies in `tokenizers`, as in a cache.
_PLACE = Path(wordllama.__file__).parent


def _open() -> Embed:
    model = wordllama.WordLlama.load(dim=256, cache_dir=_PLACE, disable_download=True)
    return lambda texts: np.asarray(model.embed(texts))


def fit(job: Job, folder: Path) -> None:
    """See `peers`; the vectors are copied for their size alone, and read from the package."""
    fit_linear(job, _open(), folder)
    for path in _PLACE.rglob("*256*.safetensors"):
        shutil.copy(path, folder)


def load(job: Job, folder: Path) -> Linear:
    """See `peers`."""
    return Linear(job, _open(), folder)
