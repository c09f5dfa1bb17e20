"""What a whole student learns from: every store of rows that the study has, those together that have equal targets."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from nni_bertnas.augment.parts import LABELLED, rows_of_copies
from nni_bertnas.errors import PhaseError
from nni_bertnas.stages.pairs import kept_rows
from nni_bertnas.stages.run import Run
from nni_bertnas.stages.stage import find, load
from nni_bertnas.store.reader import FeatureDataset

# Stages whose rows the teacher labelled beside train's: which of a folder's are meant.
_EXTRA: Mapping[str, Callable[[Run, Path], np.ndarray]] = {
    "pairs": lambda run, folder: kept_rows(folder),
    "corrupt": lambda run, folder: np.arange((run.read("corrupt") or {})["rows"]),
    "augment": lambda run, folder: rows_of_copies(folder, run.study.augment.copies),
}


def all_rows(run: Run, *, hidden: bool, vectors: bool) -> list[FeatureDataset]:
    """Train with its rows without labels, and what was made of it.

    Args:
        run: Of the study.
        hidden: Whether hidden states are among the targets, where they are stored.
        vectors: Whether sentence vectors are.

    Raises:
        PhaseError: Rows that the study asks for are not made yet.
    """
    train = run.train
    sources = [FeatureDataset(train, train.edges[1:] if hidden else (), tokens=True, vectors=vectors)]
    if len(rest := np.setdiff1d(np.arange(len(train)), sources[0].rows)):  # whose hidden states are not stored
        sources.append(FeatureDataset(train, (), tokens=True, vectors=vectors, rows=rest))
    for name, rows in _EXTRA.items():
        if not load(name).units(run):
            continue
        folder = run.folder(name)
        if find(run, name) is None:
            raise PhaseError(f"{folder} holds no new rows; make them with: bertnas {name} STUDY")
        store = run.open_store(folder / LABELLED)
        sources.append(FeatureDataset(store, (), tokens=True, vectors=vectors, rows=rows(run, folder)))
    return sources


def own_rows(run: Run, *, vectors: bool) -> FeatureDataset:
    """The labelled rows of train alone, without hidden states."""
    return FeatureDataset(run.train, (), tokens=True, vectors=vectors, rows=np.arange(len(run.data.splits["train"])))
