"""Words: which may be replaced, which pieces of a vocabulary are words, which are near one another."""

import gzip
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS
from torch.nn import functional as F

from nni_bertnas.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def replaceable(word: str) -> bool:
    """Whether a string is a word, and neither one letter nor a stop word."""
    return len(word) > 1 and word.isalpha() and word.lower() not in ENGLISH_STOP_WORDS


def whole_words(tokenizer: "PreTrainedTokenizerBase") -> dict[int, str]:
    """The pieces of a vocabulary that are whole words and may replace one: number -> word.

    Knows WordPiece (continuations start with `##`), and byte-level BPE and SentencePiece (words start with a mark).
    """
    pieces = {number: piece for piece, number in tokenizer.get_vocab().items()}
    special = set(tokenizer.all_special_ids)
    mark = next((mark for mark in "Ġ▁" if sum(p.startswith(mark) for p in pieces.values()) > len(pieces) / 20), "")
    return {
        number: piece.removeprefix(mark)
        for number, piece in sorted(pieces.items())
        if number not in special and piece.startswith(mark) and replaceable(piece.removeprefix(mark))
    }


class Neighbours:
    """The nearest words by cosine of their vectors.

    Args:
        words: Of the vocabulary; only those that may replace another are answered.
        vectors: `(num_words, size)`.
        lookup: The vector of a word, None for an unknown one; None looks into `words`.
    """

    def __init__(
        self, words: Sequence[str], vectors: np.ndarray, lookup: Callable[[str], np.ndarray | None] | None = None
    ) -> None:
        kept = [number for number, word in enumerate(words) if replaceable(word)]
        self.words = [words[number] for number in kept]
        self.vectors = F.normalize(torch.from_numpy(np.asarray(vectors[kept], np.float32)), dim=-1)
        places = {word: number for number, word in enumerate(words)}
        self.lookup = lookup or (lambda word: vectors[places[word]] if word in places else None)
        self._known: dict[tuple[str, int], tuple[str, ...]] = {}

    def nearest(self, word: str, count: int) -> tuple[str, ...]:
        """Up to `count` other words, nearest first; none for a word without a vector."""
        word = word.lower()
        if (word, count) not in self._known:
            vector = self.lookup(word)
            found: list[str] = []
            if vector is not None and len(self.words):
                likeness = self.vectors @ F.normalize(torch.from_numpy(np.asarray(vector, np.float32)), dim=0)
                best = likeness.topk(min(len(self.words), 2 * count + 1)).indices.tolist()
                found = [self.words[number] for number in best if self.words[number].lower() != word]
            self._known[word, count] = tuple(dict.fromkeys(found))[:count]
        return self._known[word, count]


def read_vectors(path: Path) -> Neighbours:
    """Word vectors: GloVe text, word2vec text (first line: count and size), or word2vec binary (`.bin`); also `.gz`.

    Raises:
        ConfigError: The file is missing or damaged, or is binary and gensim is not installed.
    """
    if not path.is_file():
        raise ConfigError(f"augment.vectors: {path} does not exist")
    try:
        if not path.name.removesuffix(".gz").endswith(".bin"):
            return Neighbours(*_read_text(path))
        try:  # an extra
            from gensim.models import KeyedVectors
        except ImportError:
            raise ConfigError(
                "augment.vectors: .bin needs gensim; install it with pip install 'nni-bertnas[vectors]'"
            ) from None
        loaded = KeyedVectors.load_word2vec_format(str(path), binary=True)
    except (OSError, ValueError, EOFError) as error:
        raise ConfigError(f"augment.vectors: {path} holds no GloVe or word2vec vectors ({error})") from error
    return Neighbours(loaded.index_to_key, loaded.vectors)


def _read_text(path: Path) -> tuple[list[str], np.ndarray]:
    """Words and vectors; read from the right, as GloVe's words may have spaces in them."""
    words, vectors, size = [], [], 0
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            fields = line.rstrip().split(" ")
            if number == 1 and len(fields) == 2:
                size = int(fields[1])
                continue
            size = size or len(fields) - 1
            if size < 1 or len(fields) <= size:
                raise ValueError(f"line {number} has {len(fields) - 1} numbers, not {size}")
            words.append(" ".join(fields[:-size]))
            vectors.append(np.array(fields[-size:], np.float32))
    if not words:
        raise ValueError("it is empty")
    return words, np.stack(vectors)


def embedding_neighbours(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> Neighbours:
    """Word vectors out of a model's input embeddings; a split word is the mean of its pieces."""
    table = model.get_input_embeddings().weight.detach().float().cpu().numpy()
    words = whole_words(tokenizer)

    def lookup(word: str) -> np.ndarray | None:
        pieces = tokenizer(word, add_special_tokens=False)["input_ids"]
        return table[pieces].mean(0) if pieces and tokenizer.unk_token_id not in pieces else None

    return Neighbours(list(words.values()), table[list(words)], lookup)
