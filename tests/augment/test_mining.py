import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nni_bertnas.augment.mining import answer_bins, bm25_partners, mine, nearest, score_edges, spread_alike
from nni_bertnas.config import PairsSettings

TEXTS = [
    "a cat sits on the mat", "the cat sat on a mat", "dogs run in the park", "a dog runs in a park",
    "stocks fell on monday", "shares fell sharply on monday", "nothing like the others", "the park is closed",
]  # fmt: skip


def test_nearest_against_a_loop() -> None:
    vectors = np.random.default_rng(0).normal(size=(30, 5))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for one, others in enumerate(nearest(vectors, 4)):
        expected = sorted((number for number in range(30) if number != one), key=lambda other: -unit[one] @ unit[other])
        assert others.tolist() == expected[:4]


def test_bm25_finds_the_twin_and_never_the_text_itself() -> None:
    partners = bm25_partners(TEXTS, 2)
    assert partners.shape == (8, 2) and all(one not in row for one, row in enumerate(partners))
    assert partners[4][0] == 5 and partners[5][0] == 4 and partners[0][0] == 1


def test_mined_pairs_are_new_different_and_the_same_every_time() -> None:
    vectors = np.random.default_rng(1).normal(size=(8, 4))
    wanted = PairsSettings(bm25=2, near=1, beyond=1, random=2)
    known = {frozenset((TEXTS[4], TEXTS[5]))}
    mined = mine(TEXTS, vectors, wanted, known, seed=3)
    pairs = list(zip(mined.first.tolist(), mined.second.tolist(), strict=True))
    assert len({frozenset(pair) for pair in pairs}) == len(pairs) and all(one != other for one, other in pairs)
    assert (4, 5) not in pairs and (5, 4) not in pairs
    assert set(mined.origin) == {"bm25", "near", "beyond", "random"}
    again = mine(TEXTS, vectors, wanted, known, seed=3)
    assert all(np.array_equal(getattr(mined, name), getattr(again, name)) for name in ("first", "second", "origin"))
    assert len(mine(TEXTS[:2], vectors[:2], PairsSettings(near=5), {frozenset(TEXTS[:2])}, seed=0)) == 0


def test_kinds_of_answers() -> None:
    classes = np.array([[0.1, 0.9], [2.0, 1.0]])
    assert score_edges(classes) is None and answer_bins(classes, None).tolist() == [1, 0]
    scores = np.array([[0.0], [5.0], [2.4], [2.6]])
    edges = score_edges(scores)
    assert edges is not None and answer_bins(scores, edges).tolist() == [0, 9, 4, 5]
    assert answer_bins(np.array([[-3.0], [9.0]]), edges).tolist() == [0, 9]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=200), st.lists(st.integers(0, 3), min_size=1, max_size=50))
def test_kept_rows_are_spread_as_wanted(found: list[int], wanted: list[int]) -> None:
    kept = spread_alike(np.array(found), np.array(wanted), seed=0)
    assert len(set(kept.tolist())) == len(kept) and kept.tolist() == sorted(kept.tolist())
    share = np.bincount(wanted, minlength=4) / len(wanted)
    counts = np.bincount(np.array(found)[kept], minlength=4)
    assert all(counts[share == 0] == 0)
    if len(kept):
        total = max(counts[kind] / share[kind] for kind in range(4) if share[kind])
        lack = (share * total - counts).sum()
        assert lack <= 0.1 * total + 4  # whole rows


def test_mrpc_like_mined_pairs_go_down_to_the_tasks_two_to_one() -> None:
    found = np.array([1] * 140 + [0] * 860)
    kept = spread_alike(found, np.array([1, 1, 0]), seed=0)
    share = found[kept].mean()
    assert len(kept) == pytest.approx(140 + 77, abs=20) and share == pytest.approx(0.64, abs=0.03)
