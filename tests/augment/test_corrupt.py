from collections import Counter

import numpy as np

from nni_bertnas.augment.corrupt import corrupt, corruptions, word_counts

TEXTS = ["the cat sat on the mat", "a dog ran", "the end", "yes"]


def test_corruptions_change_a_word_or_two_and_know_trains_words_alone() -> None:
    vocabulary = word_counts(TEXTS)
    assert dict(zip(*vocabulary, strict=True))["the"] == 3 / 12
    generator = np.random.default_rng(0)
    made = [corrupt(TEXTS[0], vocabulary, generator) for _ in range(400)]
    known = set(" ".join(TEXTS).split())
    lengths = Counter(len(text.split()) for text in made)
    assert set(lengths) == {4, 5, 6, 7, 8} and all(set(text.split()) <= known for text in made)
    before = Counter(TEXTS[0].split())
    assert max(sum((before - Counter(text.split())).values()) for text in made) <= 2
    swapped = [text for text in made if Counter(text.split()) == before and text != TEXTS[0]]
    assert swapped and corrupt("yes", vocabulary, generator) == "yes"


def test_corruptions_are_new_and_the_same_every_time() -> None:
    made = list(corruptions(TEXTS, 6, seed=0))
    texts = [text for _, text in made]
    assert len(set(texts)) == len(texts) and not set(texts) & set(TEXTS)
    assert made == list(corruptions(TEXTS, 6, seed=0)) != list(corruptions(TEXTS, 6, seed=1))
    assert {number for number, _ in made} == {0, 1, 2}
