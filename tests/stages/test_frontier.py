"""Students along the front: which they are, that they are trained, and what is said of them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from tiny import PRICES, all_units, tiny_run

from nni_bertnas.config import BudgetSettings
from nni_bertnas.errors import ConfigError
from nni_bertnas.report.front import measured_students
from nni_bertnas.report.results import best_student, show
from nni_bertnas.report.trained import Trained, show_frontier, warnings
from nni_bertnas.stages.frontier import along_front
from nni_bertnas.stages.run import Run
from nni_bertnas.stages.stage import ensure, find, load


def test_points_are_spread_over_the_front_within_the_budget() -> None:
    front = PRICES.front("latency_ms")
    two = along_front(PRICES, BudgetSettings(), 2)
    assert two == [front[0], front[-1]] and two[1] == PRICES.bag
    every = along_front(PRICES, BudgetSettings(), 9)  # all there are, on the front or not
    assert len({one.choice for one in every}) == 9 and set(front) <= set(every)
    assert [one.latency_ms for one in every] == sorted((one.latency_ms for one in every), reverse=True)
    assert all(one.latency_ms <= 4.0 for one in along_front(PRICES, BudgetSettings(min_speedup=3), 4))
    with pytest.raises(ConfigError, match=r"supernet.students: there are 9 students within the budget"):
        along_front(PRICES, BudgetSettings(), 10)


@pytest.fixture(scope="module")
def finished(built_copy: Path) -> Run:
    fields = {"cell": {"strategy": "random", "depths": [1], "epochs": 1, "candidates": 2}, "block": {"no_layer": True}}
    run = tiny_run(built_copy, supernet={"epochs": 1, "finalists": 1, "bag": False, "students": 2}, **fields)
    all_units(run, "cell", "block", "supernet", "frontier")
    return run


def test_every_point_is_a_trial_of_its_own(finished: Run) -> None:
    results = [finished.read("frontier", {"seed": 0, "point": point}) for point in (0, 1)]
    points = json.loads((finished.folder("frontier") / "points.json").read_text())["points"]
    assert [one["selection"] for one in results] == points
    assert results[0]["selection"]["latency_ms"] > results[1]["selection"]["latency_ms"]
    for one in results:
        assert one["student"]["num_params"] == one["selection"]["num_params"]
        assert one["student"]["activation_bytes"] > 0
    assert (finished.folder("frontier", {"seed": 0, "point": 1}) / "student" / "config.json").is_file()
    with pytest.raises(ConfigError, match="point must be 0 to 1, got 2"):
        ensure(finished, "frontier", {"seed": 0, "point": 2})


def test_asking_for_more_makes_the_chosen_student_no_other(finished: Run) -> None:
    more = Run(replace(finished.study, supernet=replace(finished.study.supernet, students=3)))
    assert find(more, "supernet", {"seed": 0}) is not None
    assert find(more, "frontier", {"seed": 0, "point": 0}) is None and len(load("frontier").units(more)) == 3
    assert best_student(finished)[0] == finished.folder("supernet", {"seed": 0})


def test_report_and_picture_have_them(finished: Run) -> None:
    console = Console(record=True, width=160)
    show(finished, console)
    show_frontier(finished, console)
    text = console.export_text()
    assert "point 0, seed 0" in text and "point 1, seed 0" in text and "memory of activations at batch 1, MB" in text
    names = {one.name for one in measured_students(finished)}
    assert {"teacher", "searched, seed 0", "point 0, seed 0", "point 1, seed 0"} == names


def test_warnings_tell_where_the_scores_mislead() -> None:
    def trained(*rows: tuple[float, float, int]) -> list[Trained]:
        return [Trained("", score, error, num_params) for score, error, num_params in rows]

    right = trained((0.9, 1.0, 3), (0.8, 2.0, 1), (0.7, 3.0, 4), (0.6, 4.0, 2))
    assert not list(warnings(right)) and not list(warnings(right[:3]))
    wrong = trained((0.6, 1.0, 1), (0.7, 2.0, 2), (0.8, 3.0, 3), (0.9, 4.0, 4))
    said = list(warnings(wrong))
    assert len(said) == 2 and "tau -1.00" in said[0] and "(1.00) more than scores of blocks (-1.00)" in said[1]
