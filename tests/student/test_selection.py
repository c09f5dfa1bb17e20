from dataclasses import replace

import pytest
from tiny import chain

from nni_bertnas.student.candidates import Candidate
from nni_bertnas.student.selection import combinations


def option(score: float, num_params: int, latency_ms: float) -> Candidate:
    return replace(chain("zero"), score=score, num_params=num_params, latency_ms=latency_ms)


def test_selection_takes_the_best_sum_within_the_budget() -> None:
    blocks = [
        [option(0.1, 100, 3.0), option(0.2, 10, 1.0)],
        [option(0.3, 100, 3.0), option(0.5, 10, 1.0)],
    ]
    base = option(0.0, 50, 1.0)
    assert combinations(blocks, base)[0].choice == (0, 0)
    best = combinations(blocks, base, max_params=160)[0]
    assert best.choice == (1, 0) and best.num_params == 160 and best.score == pytest.approx(0.5)
    assert [one.choice for one in combinations(blocks, base, max_latency_ms=5.0)] == [(1, 0), (0, 1), (1, 1)]
    assert combinations(blocks, base, max_params=60) == []
