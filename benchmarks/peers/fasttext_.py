"""fastText's supervised training, rate and epochs chosen by dev; texts of pairs are joined.

Its own search for options was not taken: it did not end in twenty minutes where it was given two.
"""

import itertools
import tempfile
from pathlib import Path
from typing import Any

import fasttext
import numpy as np

from peers.worker import Job, Rows

_FILE, _PREFIX = "model.bin", "__label__"
_RATES, _EPOCHS = (0.1, 0.5, 1.0), (5, 25)


def _joined(texts: list[str], pairs: list[str] | None) -> list[str]:
    both = texts if pairs is None else [f"{a} | {b}" for a, b in zip(texts, pairs, strict=True)]
    return [" ".join(one.lower().split()) for one in both]


def _write(path: Path, rows: Rows) -> str:
    lines = [
        f"{_PREFIX}{int(label)} {text}"
        for label, text in zip(rows.labels, _joined(rows.texts, rows.pairs), strict=True)
    ]
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)


def fit(job: Job, folder: Path) -> None:
    """See `peers`."""
    with tempfile.TemporaryDirectory() as place:
        train, dev = _write(Path(place, "train"), job.train), _write(Path(place, "dev"), job.dev)
        tried = (  # its seeds 0 and 1 are the same
            fasttext.train_supervised(
                input=train, lr=rate, epoch=epochs, wordNgrams=2, bucket=200_000, seed=job.seed + 1, thread=1, verbose=0
            )
            for rate, epochs in itertools.product(_RATES, _EPOCHS)
        )
        best = max(tried, key=lambda model: float(model.test(dev)[1]))
    best.save_model(str(folder / _FILE))


class _Model:
    def __init__(self, job: Job, folder: Path) -> None:
        self.model, self.num_labels = fasttext.load_model(str(folder / _FILE)), job.num_labels

    def encode(self, texts: list[str], pairs: list[str] | None) -> list[str]:
        return _joined(texts, pairs)

    def answer(self, encoded: Any) -> np.ndarray:
        found = np.zeros((len(encoded), self.num_labels))
        for row, (names, shares) in enumerate(zip(*self.model.predict(encoded, k=self.num_labels), strict=True)):
            for name, share in zip(names, shares, strict=True):
                found[row, int(name.removeprefix(_PREFIX))] = share
        return found


def load(job: Job, folder: Path) -> _Model:
    """See `peers`."""
    return _Model(job, folder)
