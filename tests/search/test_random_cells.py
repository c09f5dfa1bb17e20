import random
from collections import Counter
from dataclasses import replace

import pytest
from tiny import chain

from nni_bertnas.search import random_cells
from nni_bertnas.search.random_cells import (
    BASELINES,
    Matching,
    latency_cost,
    params_cost,
    random_cell,
    random_students,
    sample_architecture,
    uniform_architectures,
    uniform_students,
)
from nni_bertnas.search.watch import collapse
from nni_bertnas.student.candidates import Candidate
from search_space.cells import SPACES, build_body, spell
from search_space.listing import Space

WIDTH = 16


def match(
    searched: list[Candidate], depths: tuple[int, ...] = (1, 2), names: tuple | None = None, **changes: object
) -> Matching:
    space = searched[0].space
    fields = {"cost": params_cost(WIDTH), "tolerance": 0.1, "shared": False, "seed": 0, **changes}
    return Matching(
        spaces={depth: Space.of(space, depth, WIDTH, names) for depth in depths}, searched=searched, **fields
    )


def size(one: Candidate) -> int:
    return sum(p.numel() for p in build_body(one.space, one.architecture, one.depth, WIDTH).parameters())


@pytest.mark.parametrize("name", SPACES)
def test_a_random_cell_has_the_cost_that_is_wanted(name: str) -> None:
    space = Space.of(name, 3, WIDTH)
    searched = Candidate(space=name, depth=3, architecture=sample_architecture(space, random.Random(1)))
    own = match([searched], depths=(3,))
    assert own.targets == [size(searched)]
    for seed in range(5):
        drawn = random_cell(own, 0, seed)
        assert size(drawn) == own.cost(drawn) and abs(size(drawn) / size(searched) - 1) <= 0.1
        assert own.ratios([drawn]) == [size(drawn) / size(searched)] == [own.ratio([drawn])]
        assert str(drawn) != str(searched) and drawn == random_cell(own, 0, seed)
    assert len({str(random_cell(own, 0, seed)) for seed in range(8)}) > 1


def test_every_architecture_is_drawn_as_often() -> None:
    operations = ("convolution_1", "max_pool_3")
    for name, depth in (("sequential", 3), ("textnas", 2), ("adabert", 1)):
        space = Space.of(name, depth, WIDTH, operations)
        names = {spell(one) for one in space.every()}
        generator = random.Random(0)
        seen = Counter(spell(sample_architecture(space, generator)) for _ in range(40 * len(names)))
        assert set(seen) == names
        chi_squared = sum((number - 40) ** 2 / 40 for number in seen.values())
        free = len(names) - 1
        assert abs(chi_squared - free) < 4 * (2 * free) ** 0.5


def test_depths_are_drawn_too() -> None:
    own = match([replace(chain("convolution_7", "convolution_7"), space="sequential")], (1, 2, 3), tolerance=1.0)
    drawn = [random_cell(own, 0, seed).depth for seed in range(60)]
    assert set(drawn) == {1, 2, 3} and min(Counter(drawn).values()) >= 8


def test_where_no_cell_fits_the_nearest_is_taken_and_named(caplog: pytest.LogCaptureFixture) -> None:
    own = match([replace(chain("convolution_7"), space="sequential")], (1,), cost=lambda one: 1e6 - size(one))
    own = replace(own, cost=lambda one: 1e6 if one is own.searched[0] else size(one))
    drawn = random_cell(own, 0, 0)
    sizes = [size(match([chain(name)]).candidate(1, chain(name).architecture)) for name in own.spaces[1].operations]
    assert size(drawn) == max(sizes) and own.ratios([drawn]) == [max(sizes) / 1e6]
    assert "none of 500 random cells" in caplog.text


def test_the_searched_cell_is_drawn_only_where_there_is_no_other() -> None:
    searched = [chain("convolution_3")]
    assert random_cell(match(searched, (1,), ("convolution_3", "zero")), 0, 0).architecture == {"layer_0": "zero"}
    alone = replace(
        match(searched, (1,)),
        spaces={1: Space(name="layers", depth=1, operations=("convolution_3",), hidden_size=WIDTH)},
    )
    assert random_cell(alone, 0, 0).architecture == {"layer_0": "convolution_3"}


def test_uniform_cells() -> None:
    for name in SPACES:
        space = Space.of(name, 3, WIDTH)
        found = uniform_architectures(space)
        assert list(found) == list(space.operations)
        for operation, architecture in found.items():
            build_body(name, architecture, 3, WIDTH)
            operations = {
                choice for label, choice in architecture.items() if isinstance(choice, str) and "_skip_" not in label
            }
            assert operations == {operation}
    plain = uniform_architectures(Space.of("textnas", 3, WIDTH))["convolution_3"]
    assert plain["layer_1_input"] == [1] and plain["layer_2_input"] == [2]
    assert plain["layer_2_skip_0"] == plain["layer_2_skip_1"] == "zero"
    graph = uniform_architectures(Space.of("adabert", 1, WIDTH))["max_pool_3"]
    assert graph["graph_0_node_1_inputs"] == graph["graph_0_node_2_inputs"] == [0, 1]


def test_a_uniform_student_is_the_nearest_of_all() -> None:
    own = match([chain("convolution_5"), chain("convolution_5", "dilated_convolution_5")])
    drawn = uniform_students(own, 0)
    first, second = next(drawn), next(drawn)
    # Dilated convolutions are as large as plain ones; of equal cost the first in the space's order is taken.
    assert [spell(one.architecture) for one in first] == ["convolution_5", "convolution_5, convolution_5"]
    assert own.ratios(first) == [1.0, 1.0]
    assert {choice for one in second for choice in one.architecture.values()} == {"dilated_convolution_5"}
    assert next(uniform_students(own, 1)) == second
    # What was searched is none.
    same = next(uniform_students(match([chain("convolution_5")] * 2), 0))
    assert spell(same[0].architecture) == "dilated_convolution_5"
    assert not any(
        one == [chain("convolution_5")] * 2 for one in uniform_students(match([chain("convolution_5")] * 2), 0)
    )


def test_random_students_differ_and_keep_their_numbers() -> None:
    searched = [chain("convolution_5")] * 2
    own = match(searched, (1,), tolerance=0.5)
    drawn = [next(random_students(own, number)) for number in range(5)]
    assert len({str(cells) for cells in drawn}) == 5
    assert drawn[3] == next(random_students(own, 3))
    assert any(next(random_students(replace(own, seed=1), number)) != cells for number, cells in enumerate(drawn))
    shared = replace(own, shared=True)
    for number in range(4):
        first, second = next(random_students(shared, number))
        assert first.architecture == second.architecture


def test_latency_can_be_matched(monkeypatch: pytest.MonkeyPatch) -> None:
    # One ms per operation with weights, on a clock that runs ever slower: the reference takes the drift away.
    drift = iter(range(1, 10_000))

    def measure(calls: dict, lengths: list, threads: int) -> dict:
        now = next(drift)
        return {name: now * call for name, call in calls.items()}

    monkeypatch.setattr(random_cells, "cell_call", lambda body, size, lengths: 1 + sum(1 for p in body.parameters()))
    monkeypatch.setattr(random_cells, "measure_latency_ms", measure)
    cost = latency_cost(WIDTH, chain("convolution_3"), [5])
    assert cost(chain("convolution_3")) == cost(chain("convolution_7")) == 5.0
    assert cost(chain("zero")) == 3.0
    own = match([replace(chain("max_pool_3"), space="sequential")] * 2, (1,), cost=cost)
    cells = next(random_students(own, 0))
    assert own.targets[0] == own.targets[1] and own.ratios(cells) == [1.0, 1.0]
    assert all(collapse(one.architecture, WIDTH) for one in cells)


@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_gives_whole_students(name: str) -> None:
    own = match([chain("convolution_5"), chain("attention_4", "max_pool_3")])
    for number in range(2):
        cells = next(BASELINES[name].students(own, number))
        assert len(cells) == 2 and all(one.space == "layers" and one.depth in own.spaces for one in cells)
