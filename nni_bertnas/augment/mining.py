"""New pairs out of single texts (Augmented SBERT, Thakur et al., arXiv 2010.08240); the teacher labels them.

Partners of a text are its nearest by BM25 and by sentence vectors, some from the ranks beyond, and random ones. Which
of the labelled pairs are kept follows the task: the teacher's answers are to be spread as they are on train, since
otherwise nearly all are of one kind.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nni_bertnas.config import PairsSettings

_BINS = 10  # of scores
_LACK = 0.1  # share of the wanted pairs that scarce answers may fall short by
_BLOCK = 1024  # texts whose similarities are held at once


@dataclass(frozen=True)
class MinedPairs:
    """Pairs of texts by number.

    Attributes:
        first: `(pairs,)`.
        second: `(pairs,)`.
        origin: How each was found, `(pairs,)`: bm25, near, beyond or random.
    """

    first: np.ndarray
    second: np.ndarray
    origin: np.ndarray

    def __len__(self) -> int:
        return len(self.first)


def mine(
    texts: Sequence[str], vectors: np.ndarray, settings: PairsSettings, known: set[frozenset[str]], seed: int
) -> MinedPairs:
    """Pairs of different texts, each once whatever the order, none of them known.

    Args:
        texts: All different.
        vectors: Of every text, `(texts, hidden)`.
        settings: How many partners of each kind a text has.
        known: Pairs that are left out.
        seed: Of all random choices.
    """
    generator, count = np.random.default_rng(seed), len(texts)
    longest = min(count - 1, max(settings.near, settings.ranks if settings.beyond else 0))
    near = nearest(vectors, longest) if longest > 0 else np.zeros((count, 0), int)
    kinds = {
        "bm25": bm25_partners(texts, min(settings.bm25, count - 1)),
        "near": near[:, : settings.near],
        "beyond": _some(near[:, settings.near :], settings.beyond, generator),
        "random": generator.integers(0, count, (count, settings.random)),
    }
    taken: set[tuple[int, int]] = set()
    found: list[tuple[int, int, str]] = []
    for kind, partners in kinds.items():
        for one, others in enumerate(partners.tolist()):
            for other in others:
                pair = (min(one, other), max(one, other))
                if one != other and pair not in taken and frozenset((texts[one], texts[other])) not in known:
                    taken.add(pair)
                    found.append((one, other, kind))
    columns = zip(*found, strict=True) if found else ((), (), ())
    first, second, origin = (np.array(column) for column in columns)
    return MinedPairs(first.astype(int), second.astype(int), origin)


def _some(partners: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """As many random columns of every row, in their order."""
    keys = generator.random(partners.shape)
    kept = np.sort(keys.argsort(axis=1)[:, :count], axis=1)
    return np.take_along_axis(partners, kept, axis=1)


def nearest(vectors: np.ndarray, count: int) -> np.ndarray:
    """The nearest others of every vector by cosine, `(texts, count)`, nearest first."""
    unit = vectors.astype(np.float32)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True).clip(min=1e-12)
    found = []
    for first in range(0, len(unit), _BLOCK):
        similar = unit[first : first + _BLOCK] @ unit.T
        similar[np.arange(len(similar)), first + np.arange(len(similar))] = -np.inf
        best = np.argpartition(-similar, count - 1, axis=1)[:, :count]
        order = np.take_along_axis(-similar, best, axis=1).argsort(axis=1, kind="stable")
        found.append(np.take_along_axis(best, order, axis=1))
    return np.concatenate(found)


def bm25_partners(texts: Sequence[str], count: int) -> np.ndarray:
    """The best other texts for every text by BM25, `(texts, count)`; the text itself where there are fewer."""
    if count < 1:
        return np.zeros((len(texts), 0), int)
    import bm25s  # takes a third of a second to load, which trials need not pay

    logging.getLogger("bm25s").setLevel(logging.WARNING)  # it sets its own level when it is imported
    tokens = bm25s.tokenize(list(texts), stopwords=None, show_progress=False)
    index = bm25s.BM25()
    index.index(tokens, show_progress=False)
    found, _ = index.retrieve(tokens, k=count + 1, show_progress=False)
    own = np.arange(len(texts))[:, None]
    # A text finds itself first, but for its twins.
    order = (found == own).argsort(axis=1, kind="stable")
    return np.asarray(np.take_along_axis(found, order, axis=1)[:, :count])


def answer_bins(answers: np.ndarray, edges: np.ndarray | None) -> np.ndarray:
    """Which kind of answer every row has: the class, or which of the bins between `edges` its score is in."""
    return answers.argmax(1) if edges is None else np.searchsorted(edges, answers[:, 0])


def score_edges(answers: np.ndarray) -> np.ndarray | None:
    """Inner edges of equally wide bins over the scores of train; None for classes."""
    if answers.shape[1] > 1:
        return None
    scores = answers[:, 0]
    return np.linspace(scores.min(), scores.max(), _BINS + 1)[1:-1]


def spread_alike(found: np.ndarray, wanted: np.ndarray, seed: int) -> np.ndarray:
    """The most rows whose answers are spread as wanted.

    Args:
        found: Kind of answer of every row there is, `(rows,)`.
        wanted: Kinds of answer on train, `(rows of train,)`.
        seed: Of the choice.

    Returns:
        Numbers of the rows, rising. Scarce kinds may fall short, all together by a tenth of the rows.
    """
    kinds = int(max(found.max(initial=0), wanted.max(initial=0))) + 1
    share = np.bincount(wanted, minlength=kinds) / len(wanted)
    there = np.bincount(found, minlength=kinds)
    low, high = 0, len(found)
    while low < high:  # the greatest number that can be served
        middle = (low + high + 1) // 2
        if np.minimum(there, share * middle).sum() >= (1 - _LACK) * middle:
            low = middle
        else:
            high = middle - 1
    quota = np.minimum(there, np.floor(share * low)).astype(int)
    order = np.random.default_rng(seed).permutation(len(found))
    kept = [order[found[order] == kind][: quota[kind]] for kind in range(kinds)]
    return np.sort(np.concatenate(kept))
