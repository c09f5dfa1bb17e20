"""Corruptions of a text, for tasks that ask whether a text is well-formed: the teacher says which still is.

A word is dropped, repeated, swapped with the next, or replaced by, or preceded by, a word of train, drawn as often as
it stands there: frequent words, such as articles and prepositions, are most of what makes a text ill-formed.
"""

from collections.abc import Iterator, Sequence

import numpy as np

_MOST = 2  # corruptions of one text


def word_counts(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """All words of some texts, cut at spaces, and the share of each: `(words,)` both."""
    words, counts = np.unique([word for text in texts for word in text.split()], return_counts=True)
    return words, counts / counts.sum()


def corrupt(text: str, vocabulary: tuple[np.ndarray, np.ndarray], generator: np.random.Generator) -> str:
    """One or two random corruptions of a text; a text of one word stays as it is."""
    words = text.split()
    if len(words) < 2:
        return text
    for _ in range(int(generator.integers(1, _MOST + 1))):
        place, kind = int(generator.integers(len(words))), int(generator.integers(5))
        if kind == 0 and len(words) > 2:
            del words[place]
        elif kind == 1:
            words.insert(place, words[place])
        elif kind == 2:
            other = min(place + 1, len(words) - 1)
            words[place], words[other] = words[other], words[place]
        else:
            drawn = str(generator.choice(vocabulary[0], p=vocabulary[1]))
            words[place : place + (kind == 3)] = [drawn]
    return " ".join(words)


def corruptions(texts: Sequence[str], count: int, seed: int) -> Iterator[tuple[int, str]]:
    """New texts: number of the text that each comes from, and the corruption; none twice, none of the texts.

    A text's corruptions depend on the seed, its number and all texts.

    Args:
        texts: Of train.
        count: Tries per text.
        seed: Of all random choices.
    """
    vocabulary, seen = word_counts(texts), set(texts)
    for number, text in enumerate(texts):
        generator = np.random.default_rng((seed, number, 1))
        for _ in range(count):
            made = corrupt(text, vocabulary, generator)
            if made not in seen:
                seen.add(made)
                yield number, made
