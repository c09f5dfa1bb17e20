"""TF-IDF of words and pairs of words, with a linear classifier: what was done before there were encoders."""

import pickle
from pathlib import Path

from sklearn.feature_extraction.text import TfidfVectorizer

from peers.features import Linear, fit_linear
from peers.worker import Job

_FILE = "words.pkl"


def fit(job: Job, folder: Path) -> None:
    """See `peers`."""
    words = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True).fit(
        job.train.texts + (job.train.pairs or [])
    )
    (folder / _FILE).write_bytes(pickle.dumps(words))
    fit_linear(job, words.transform, folder)


def load(job: Job, folder: Path) -> Linear:
    """See `peers`."""
    words = pickle.loads((folder / _FILE).read_bytes())
    return Linear(job, words.transform, folder)
