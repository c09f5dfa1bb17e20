import itertools
import math
import os
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import chain

from nni_bertnas.student import COSTS
from nni_bertnas.student.candidates import Candidate
from nni_bertnas.student.selection import Combination, best, combine, nearest, unlike

CASES = int(os.environ.get("BERTNAS_FUZZ", "100"))


def option(score: float, num_params: int = 0, latency_ms: float = 0.0, num_flops: int = 0) -> Candidate:
    return replace(chain("zero"), score=score, num_params=num_params, latency_ms=latency_ms, num_flops=num_flops)


def apart(blocks: list, base: Candidate, limits: dict[str, float], count: int, differ: int) -> list[Combination]:
    """One after another, each other than all before in so many blocks."""
    kinds, found = [range(len(block)) for block in blocks], []
    while len(found) < count:
        more = best(blocks, base, limits, [unlike(kinds, other.choice, differ) for other in found])
        if not more:
            break
        found += more
    return found


def test_the_best_sum_within_the_budget() -> None:
    blocks = [[option(0.1, 100, 3.0), option(0.2, 10, 1.0)], [option(0.3, 100, 3.0), option(0.5, 10, 1.0)]]
    base = option(0.0, 50, 1.0)
    assert best(blocks, base, {})[0].choice == (0, 0)
    found = best(blocks, base, {"num_params": 160})[0]
    assert found.choice == (1, 0) and found.num_params == 160 and found.score == pytest.approx(0.5)
    assert [one.choice for one in best(blocks, base, {"latency_ms": 5.0}, count=9)] == [(1, 0), (0, 1), (1, 1)]
    assert [one.choice for one in apart(blocks, base, {}, 9, 2)] == [(0, 0), (1, 1)]
    assert best(blocks, base, {"num_params": 60}) == []
    assert {name: one.choice for name, one in nearest(blocks, base, {"num_params": 60}).items()} == {
        "num_params": (1, 1)
    }


tables = st.lists(
    st.lists(
        st.builds(option, st.floats(0, 2), st.integers(0, 1000), st.floats(0, 5), st.integers(0, 10**6)),
        min_size=1, max_size=4,
    ),
    min_size=1, max_size=4,
)  # fmt: skip


def brute(blocks: list[list[Candidate]], base: Candidate, limits: dict[str, float]) -> list[Combination]:
    every = (combine(blocks, base, one) for one in itertools.product(*(range(len(block)) for block in blocks)))
    fitting = [one for one in every if all(getattr(one, name) <= limit for name, limit in limits.items())]
    return sorted(fitting, key=lambda one: one.score)


@given(tables, st.dictionaries(st.sampled_from(COSTS), st.floats(0, 1), max_size=3), st.integers(1, 3))
@settings(max_examples=CASES, deadline=None)
def test_it_is_what_trying_all_finds(blocks: list[list[Candidate]], shares: dict[str, float], differ: int) -> None:
    base = option(0.0, 7, 0.3, 5)
    most = {
        name: getattr(base, name) + sum(max(getattr(one, name) for one in block) for block in blocks) for name in COSTS
    }
    limits = {name: share * most[name] for name, share in shares.items()}
    every = brute(blocks, base, limits)
    found = best(blocks, base, limits, count=5)
    assert [one.score for one in found] == pytest.approx([one.score for one in every[:5]], abs=1e-9)
    assert all(one in every for one in found) and len({one.choice for one in found}) == len(found)
    greedy: list[Combination] = []
    for _ in range(3):  # the same, greedily, by trying all
        left = [one for one in every if all(
            sum(a != b for a, b in zip(one.choice, other.choice, strict=True)) >= differ for other in greedy
        )]  # fmt: skip
        greedy += left[:1]
    found = apart(blocks, base, limits, 3, differ)
    # Of equal scores either may come first, and then others are left.
    assert [one.score for one in found[:1]] == pytest.approx([one.score for one in greedy[:1]], abs=1e-9)
    for one, other in itertools.combinations(found, 2):
        assert sum(a != b for a, b in zip(one.choice, other.choice, strict=True)) >= differ
    for name, one in nearest(blocks, base, limits).items():
        rest = brute(blocks, base, {other: limit for other, limit in limits.items() if other != name})
        least = min((getattr(other, name) for other in rest or brute(blocks, base, {})), default=math.inf)
        assert getattr(one, name) == pytest.approx(least, rel=1e-9, abs=1e-9)


def test_kinds_of_candidates_can_be_kept_apart() -> None:
    blocks = [[option(0.1), option(0.2), option(0.3)], [option(0.1), option(0.2), option(0.3)]]
    kinds = [["attention", "attention", "convolution"]] * 2
    assert best(blocks, option(0.0), {}, [unlike(kinds, (0, 0), 2)])[0].choice == (2, 2)
    assert best(blocks, option(0.0), {}, [unlike(kinds, (0, 0), 1)])[0].score == pytest.approx(0.4)


def test_ten_thousand_million_combinations() -> None:
    generator = np.random.default_rng(0)
    blocks = []
    for _ in range(6):
        size = generator.random(46)
        score = 1.2 - size + 0.3 * generator.random(46)
        blocks.append(
            [
                option(s, int(1e6 * c), 3 * c * (0.7 + 0.6 * r), int(5e8 * c * (0.7 + 0.6 * q)))
                for s, c, r, q in zip(score, size, generator.random(46), generator.random(46), strict=True)
            ]
        )
    before = time.monotonic()
    limits = {"num_params": 3.1e6, "latency_ms": 8.0, "num_flops": 1.4e9}
    found = best(blocks, option(0.0), limits, count=10)
    assert time.monotonic() - before < 60  # well under one on a quiet machine
    assert len(found) == 10 and [one.score for one in found] == sorted(one.score for one in found)
    assert all(getattr(one, name) <= limit for one in found for name, limit in limits.items())
