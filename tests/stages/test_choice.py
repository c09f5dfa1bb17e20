"""What a finished block phase answers: budgets, fronts, without searching again."""

import itertools
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from tiny import PRICES, all_units, tiny_run

from nni_bertnas.cli import main
from nni_bertnas.config import BudgetSettings, to_yaml
from nni_bertnas.errors import PhaseError
from nni_bertnas.stages.cells import load_ranked
from nni_bertnas.stages.choice import Prices, choose
from nni_bertnas.stages.run import Run
from nni_bertnas.stages.stage import ensure
from nni_bertnas.stages.students import StudentMaker
from nni_bertnas.stages.supernet import finals, nearest
from nni_bertnas.student import COSTS
from nni_bertnas.student.cost import count_flops, count_params
from nni_bertnas.student.latency import NOTHING, LatencyTable, OtherWork, Part
from nni_bertnas.student.selection import Combination, combine
from search_space.student import StudentForSequenceClassification


def test_limits_in_every_unit() -> None:
    assert PRICES.limits(BudgetSettings()) == {}
    both = PRICES.limits(
        BudgetSettings(max_params=800, max_size_mb=0.002, max_flops=9, max_latency_ms=5.0, min_speedup=3)
    )
    assert both == {"num_params": 500, "num_flops": 9, "latency_ms": 4.0}


@pytest.mark.parametrize(
    ("budget", "choice"),
    [
        ({}, (0, 0)), ({"max_latency_ms": 5.0}, (1, 0)), ({"min_speedup": 3.0}, (1, 0)),
        ({"max_size_mb": 0.0011}, (1, 1)),
        ({"max_flops": 300}, (1, 2)), ({"max_params": 49}, (2, 2)), ({"max_latency_ms": 0.5}, (2, 2)),
    ],
)  # fmt: skip
def test_one_search_answers_any_budget(budget: dict, choice: tuple[int, int]) -> None:
    found = PRICES.best(BudgetSettings(**budget))
    assert found is not None and found.choice == choice


def test_what_cannot_be_names_the_nearest() -> None:
    budget = BudgetSettings(max_params=40, min_speedup=1.0)
    assert PRICES.best(budget) is None
    said = PRICES.impossible(budget)
    assert "at most 40 parameters are wanted, 45 is the least" in said and "12.00 ms" in said


@pytest.mark.parametrize(
    ("students", "last"),
    [
        ([(0.5, 4.0)], [0]),
        ([(0.5, 4.0), (0.4, 3.9), (0.7, 2.0), (0.6, 1.9)], [1, 3]),  # 2.0 is more than half of 3.9
        ([(0.5, 4.0), (0.4, 3.9), (0.605, 1.9), (0.6, 1.95)], [1, 3]),
        ([(0.5, 4.0), (0.9, 3.9), (0.4, 2.0), (0.6, 1.9)], [2]),
        ([(0.5, 4.0), (0.4, 3.9), (float("inf"), 2.0), (float("inf"), 1.9)], [1]),
        ([(0.4, 4.0), (0.405, 3.9), (0.7, 2.0)], [0, 2]),
    ],
)
def test_the_nearest_finalist_and_the_nearest_of_half_its_latency_are_trained(
    students: list[tuple[float, float]], last: list[int]
) -> None:
    assert finals(students) == last


def test_the_fastest_within_two_percent_of_the_nearest_is_taken() -> None:
    assert nearest([(0.5, 4.0)]) == 0
    assert nearest([(0.4, 4.0), (0.407, 3.9), (0.409, 2.0)]) == 1


@pytest.mark.parametrize("cost", COSTS)
def test_the_front_is_what_nothing_beats(cost: str) -> None:
    every = [combine(PRICES.blocks, PRICES.base, one) for one in itertools.product(range(3), range(3))]
    every = [one for one in every if one.choice != (2, 2)] + [PRICES.bag]

    def beaten(one: Combination) -> bool:
        return any(
            other.score <= one.score and getattr(other, cost) <= getattr(one, cost)
            and (other.score, getattr(other, cost)) != (one.score, getattr(one, cost))
            for other in every
        )  # fmt: skip

    wanted = sorted((one for one in every if not beaten(one)), key=lambda one: one.score)
    assert PRICES.front(cost) == wanted and len(wanted) > 2


@pytest.fixture(scope="module")
def searched(built_copy: Path) -> Run:
    run = tiny_run(
        built_copy, cell={"strategy": "random", "depths": [1], "epochs": 1, "candidates": 2}, block={"no_layer": True}
    )
    all_units(run, "cell", "block")
    (built_copy / "study.yml").write_text(to_yaml(run.study))
    return run


def test_select_and_front_print_what_can_be_had(
    searched: Run, built_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    study = str(built_copy / "study.yml")
    assert main(["select", study, "--top", "3", "--differ", "2"]) == 0
    text = capsys.readouterr().out
    assert text.count(" x ") == 3 and "bertnas supernet" in text
    assert main(["select", study, "--max-params", "10"]) == 1
    assert "at most 10 parameters are wanted" in capsys.readouterr().err
    assert main(["select", study, "--max-latency-ms", "-1"]) == 2
    assert "--max-latency-ms must be above 0" in capsys.readouterr().err
    assert main(["select", study, "--differ", "0"]) == 2
    assert "--differ must be above 0" in capsys.readouterr().err
    assert main(["front", study, "--cost", "num_params", "--draw", str(tmp_path / "front.png")]) == 0
    assert "no layer | no layer" in capsys.readouterr().out
    assert (tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")
    assert main(["front", study, "--draw", str(tmp_path / "front.gif")]) == 2
    with monkeypatch.context() as changed:
        changed.setattr(OtherWork, "cores", lambda self: 1000.0)
        assert main(["profile", study, "--batch", "3"]) == 1
    assert "nothing was kept" in capsys.readouterr().err
    monkeypatch.setattr(OtherWork, "cores", lambda self: 0.0)
    assert main(["profile", study, "--batch", "1", "2"]) == 0
    text = capsys.readouterr().out
    for name in ("teacher", "student without layers", "map between blocks", *searched.spaces[1].operation_names):
        assert len(re.findall(rf"^\W+{name} +(\W+[\d.]+ ){{4}}\W*$", text, re.M)) == 2
    assert len(list(searched.shared.glob("latency-*.json"))) == 2
    assert main(["profile", study, "--batch", "0"]) == 2


def test_what_is_counted_is_what_a_student_has(searched: Run) -> None:
    maker = StudentMaker(searched, 0)
    ranked = load_ranked(searched)
    prices = Prices.measure(maker, ranked)
    assert prices.bag is not None
    for choice in itertools.product(*(range(len(block)) for block in ranked)):
        student = maker.new_student([block[n] for block, n in zip(ranked, choice, strict=True)]).fused()
        counted = prices.bag if choice == prices.bag.choice else combine(prices.blocks, prices.base, choice)
        assert counted.num_params == count_params(student)
        assert counted.num_flops == count_flops(maker.call(student), maker.middle)


def test_every_second_finalist_takes_at_most_half_the_latency_of_the_first(
    searched: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def latency_ms(table: LatencyTable, parts: dict[str, list[Part]], lengths: list[int]) -> dict[str, float]:
        return {name: 0.1 if name in ("base", "bag", "student") else float(len(own)) for name, own in parts.items()}

    monkeypatch.setattr(LatencyTable, "latency_ms", latency_ms)
    maker, ranked = StudentMaker(searched, 0), load_ranked(searched)
    ranked = [[replace(one, score=0.1 * n - one.depth) for n, one in enumerate(block)] for block in ranked]
    (first, _), *others = choose(maker, ranked, 4)
    assert [one.latency_ms <= first.latency_ms / 2 for one, _ in others] == [False, True, True]
    assert [one for one, _ in choose(maker, ranked, 1)] == [first]
    (half, _), *none = choose(maker, ranked, 2)[1:]
    assert half.latency_ms <= first.latency_ms / 2 and not none
    everything = [one.choice for one, _ in choose(maker, ranked, 99)]
    assert len(set(everything)) == len(everything) > 4


def test_a_speedup_counts_in_turns_with_the_teacher(searched: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def told(table: LatencyTable, parts: dict[str, list[Part]], lengths: list[int]) -> dict[str, float]:
        fixed = {"teacher": 20.0, "base": 1.0, "bag": 1.0, "deepest": 5.0}  # by which all are fast enough
        return {name: fixed.get(name, float(len(own))) for name, own in parts.items()}

    def turns(maker: StudentMaker, student: StudentForSequenceClassification) -> dict[str, float]:
        return {"teacher": 10.0, "student": 1.0 + sum(one["depth"] for one in student.config.cells)}

    monkeypatch.setattr(LatencyTable, "latency_ms", told)
    monkeypatch.setattr(StudentMaker, "latency_ms", turns)
    study = replace(searched.study, supernet=replace(searched.study.supernet, budget=BudgetSettings(min_speedup=4.0)))
    maker, ranked = StudentMaker(Run(study), 0), load_ranked(searched)
    ranked = [[replace(one, score=-float(one.depth)) for one in block] for block in ranked]

    def layers(others: float) -> set[int]:
        monkeypatch.setattr(OtherWork, "cores", lambda self: others)
        return {sum(one.depth for one in picked) for _, picked in choose(maker, ranked, 3)}

    assert max(layers(0.0)) == 1
    assert [Prices.measure(maker, ranked, in_turns=one).teacher_ms for one in (False, True)] == [20.0, 5.0 * 10.0 / 3.0]
    assert max(layers(1000.0)) == sum(max(one.depth for one in block) for block in ranked)  # that would tell nothing
    monkeypatch.setattr(StudentMaker, "latency_ms", lambda maker, student: {"teacher": 10.0, "student": 5.0})
    with pytest.raises(PhaseError, match=r"takes 5 ms as a whole, and at most 2\.5 are wanted"):
        layers(0.0)


def test_a_student_is_chosen_and_timed_in_the_runtime_that_is_asked_for(
    built_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OtherWork, "cores", lambda self: 0.0)
    supernet = {"latency_runtime": "onnx", "latency_length": 16, "budget": {"min_speedup": 0.1}, "finalists": 1}
    cell = {"strategy": "grid", "operations": ["convolution_3", "attention_4"], "epochs": 1, "depths": [1]}
    run = tiny_run(built_copy, cell=cell, supernet=supernet)
    all_units(run, "cell", "block")
    result = ensure(run, "supernet", {"seed": 0})
    assert result["latency_runtime"] == "onnx" and result["speedup"] > 0
    tables = [json.loads(path.read_text()) for path in run.shared.glob("latency-*.json")]
    (table,) = (one for one in tables if one["machine"]["runtime"].startswith("onnxruntime"))
    assert all(set(row) == {"16"} for row in table["parts"].values())
    assert NOTHING.name in table["parts"] and any(name.startswith("teacher") for name in table["parts"])
