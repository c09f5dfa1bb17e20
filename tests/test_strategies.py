"""Every strategy on every space, and on blocks that are exactly one architecture of the space."""

import importlib.util
import itertools
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_study
from test_search import WIDTH, write_planted_store

from nni_bertnas.config import CellConfig, parse_study
from nni_bertnas.errors import CandidateError, ConfigError
from nni_bertnas.search import evaluator
from nni_bertnas.search.evaluator import DistillationEvaluator, block_scores
from nni_bertnas.search.strategies import (
    DIFFERENTIABLE,
    ONE_SHOT,
    STRATEGIES,
    Found,
    Search,
    check_budget,
    check_search,
    most_probable,
)
from nni_bertnas.store.reader import FeatureStore
from nni_bertnas.student.cost import operation_costs
from search_space.cells import SPACES, Architecture, build_body, spell
from search_space.spaces import CellSpace, extract_cells

Stores = tuple[FeatureStore, FeatureStore]
CHOICES = ("max_pool_3", "average_pool_3", "convolution_3", "zero")
HAS_TIANSHOU = importlib.util.find_spec("tianshou") is not None
RUNNABLE = [
    pytest.param(name, marks=pytest.mark.skipif(name == "enas" and not HAS_TIANSHOU, reason="needs tianshou"))
    for name in STRATEGIES
]


def plant(root: Path, space: str, depth: int, architecture: Architecture, num_rows: int = 160) -> Stores:
    """Train and dev of a block that is exactly a cell, its convolutions made strong."""
    torch.manual_seed(0)
    truth = build_body(space, architecture, depth, WIDTH)
    for module in truth.modules():
        if isinstance(module, torch.nn.Conv1d):
            module.weight.data *= 4
    return write_planted_store(root / "train", truth, num_rows, 1), write_planted_store(root / "dev", truth, 60, 2)


@pytest.fixture(scope="module")
def convolution(tmp_path_factory: pytest.TempPathFactory) -> Stores:
    return plant(tmp_path_factory.mktemp("one"), "sequential", 1, {"layer_0": "convolution_3"})


@pytest.fixture(scope="module")
def two_layers(tmp_path_factory: pytest.TempPathFactory) -> Stores:
    return plant(tmp_path_factory.mktemp("two"), "sequential", 2, {"layer_0": "convolution_3", "layer_1": "max_pool_3"})


def make_search(
    stores: Stores, folder: Path, strategy: str, operations: Sequence[str] = CHOICES, *, space: str = "sequential",
    depth: int = 1, hidden_size: int = WIDTH, cost: str | None = None, options: dict[str, Any] | None = None,
    **config: Any,
) -> Search:  # fmt: skip
    settings = CellConfig(
        **{
            "space": space, "strategy": strategy, "epochs": 4, "architecture_learning_rate": 0.1, "candidates": 2,
            "samples": 6, "cost": cost, **config,
        }
    )  # fmt: skip
    torch.manual_seed(0)
    costs = None
    if cost is not None:
        names = {*operations, *(("zero", "identity") if space == "textnas" else ())}
        costs = operation_costs(sorted(names), hidden_size, cost, 7)
    return Search(
        make_space=partial(
            CellSpace, space=space, depth=depth, teacher_size=WIDTH, hidden_size=hidden_size, operations=operations
        ),
        make_evaluator=partial(
            DistillationEvaluator, train=stores[0], dev=stores[1], edges=[0, 1], epochs=settings.epochs,
            batch_size=settings.batch_size, learning_rate=1e-2, **(options or {}),
        ),
        config=settings, seed=0, folder=folder, costs=costs,
    )  # fmt: skip


def run(search: Search) -> list[Found]:
    """What the search finds, best first."""
    found = STRATEGIES[search.config.strategy](search)
    return sorted(found, key=lambda one: one.score)


# --- all pairs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", RUNNABLE)
@pytest.mark.parametrize("space", SPACES)
def test_every_strategy_searches_every_space(convolution: Stores, tmp_path: Path, space: str, strategy: str) -> None:
    operations, depth = ("max_pool_3", "convolution_3"), 2 - (space == "adabert")
    fields = {"space": space, "strategy": strategy, "operations": list(operations), "depths": [2]}
    study = tiny_study(tmp_path, cell=fields)
    if space == "adabert" and strategy in ("grid", "enas"):
        with pytest.raises(ConfigError, match="grid trains every" if strategy == "grid" else "enas cannot search"):
            check_search(study)
        return
    check_search(study)
    search = make_search(
        convolution, tmp_path, strategy, operations, space=space, depth=depth, hidden_size=8, epochs=1, samples=3,
        population=2, rank_limit=6, batch_size=48, candidate_epochs=1, options={"max_rows": 48},
    )  # fmt: skip
    found = run(search)
    expected = {"grid": search.space.count(), **dict.fromkeys(ONE_SHOT, 2)}.get(strategy, 3)
    names = {spell(one.architecture) for one in found}
    assert len(names) == len(found) == expected
    for one in found[:3]:
        assert (one.space, one.depth) == (space, depth)
        assert search.space.canonical(one.architecture) == one.architecture
        plain = search.space.build(one.architecture)
        plain.load_state_dict(one.cells[0].state_dict())
        assert block_scores([plain], convolution[1], [0, 1]) == pytest.approx([one.score], rel=1e-4)
        assert (one.inherited is not None) == (strategy in ONE_SHOT)


def test_what_cannot_be_searched_is_refused_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def study(**cell: object) -> Any:
        return tiny_study(tmp_path, cell=cell)

    with pytest.raises(ConfigError, match=r"textnas has 24,576 at depth 3 \(at most 2,000\); name fewer"):
        check_search(study(space="textnas", strategy="grid", depths=[1, 3]))
    check_search(study(space="textnas", strategy="grid", depths=[1]))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tianshou" else True)
    with pytest.raises(ConfigError, match=r"enas needs tianshou, .*pip install .*or choose random_one_shot"):
        check_search(study(strategy="enas"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    for space in ("sequential", "layers", "nasbert", "textnas"):
        check_search(study(space=space, strategy="enas"))
    with pytest.raises(ConfigError, match=r"enas cannot search adabert.*choose random_one_shot"):
        check_search(study(space="adabert", strategy="enas"))
    with pytest.raises(ConfigError, match=r"cell\.space, cell\.operations: unknown space 'mesh'"):
        check_search(study(space="mesh"))
    with pytest.raises(ConfigError, match="attention_12 needs a width that 12 divides, got 16"):
        check_search(study(operations=["attention_12", "zero"]))


# --- planted truth --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", RUNNABLE)
def test_every_strategy_finds_a_planted_layer(convolution: Stores, tmp_path: Path, strategy: str) -> None:
    found = run(make_search(convolution, tmp_path, strategy))
    assert found[0].architecture == {"layer_0": "convolution_3"}
    assert found[0].score < 0.92 * found[1].score


@pytest.mark.parametrize("strategy", ["darts", "evolution"])
def test_two_planted_layers_are_found_in_their_order(two_layers: Stores, tmp_path: Path, strategy: str) -> None:
    operations = ("convolution_3", "max_pool_3", "zero")
    found = run(make_search(two_layers, tmp_path, strategy, operations, depth=2, samples=9))
    assert found[0].architecture == {"layer_0": "convolution_3", "layer_1": "max_pool_3"}


def test_a_planted_path_with_wires_is_found(tmp_path: Path) -> None:
    truth: Architecture = {
        "layer_0": "convolution_3", "layer_1_input": [1], "layer_1": "max_pool_3", "layer_1_skip_0": "identity",
    }  # fmt: skip
    stores = plant(tmp_path, "textnas", 2, truth, num_rows=200)
    search = make_search(
        stores, tmp_path, "darts", ("convolution_3", "max_pool_3"), space="textnas", depth=2, epochs=6,
        ranking="weights", candidates=4,
    )  # fmt: skip
    found = run(search)
    assert len(search.paths) == 16 and found[0].architecture == truth and found[0].score < 0.85 * found[1].score


def test_darts_moves_its_weights_to_the_planted_operation(convolution: Stores, tmp_path: Path) -> None:
    reports: list[dict[str, float]] = []
    search = make_search(
        convolution, tmp_path, "darts", candidates=4, epochs=6, options={"report": reports.append}
    )  # fmt: skip
    found = STRATEGIES["darts"](search)
    assert found[0].architecture == {"layer_0": "convolution_3"}  # the most probable one comes first
    searched = [report for report in reports if "architecture_loss" in report]
    shares = [report["probability/layer_0/convolution_3"] for report in searched]
    assert len(searched) == 6 and shares[0] > 0.25 and shares[-1] > 0.4 and shares == sorted(shares)
    assert searched[-1]["architecture_entropy"] < searched[0]["architecture_entropy"] < np.log(4)
    assert searched[-1]["train_loss"] < searched[0]["train_loss"]
    scores = {one.architecture["layer_0"]: one.score for one in found}
    assert len(scores) == 4 and scores["convolution_3"] < 0.6 * max(scores.values())


def test_trial_strategies_try_no_architecture_twice(convolution: Stores, tmp_path: Path) -> None:
    """More samples than there are architectures: every one is tried once, and the search ends."""
    for strategy in ("random", "evolution", "tpe"):
        search = make_search(convolution, tmp_path, strategy, CHOICES[:2], epochs=1, samples=6)
        names = [one.architecture["layer_0"] for one in run(search)]
        assert len(names) == len(set(names)) <= 2 and (strategy == "evolution" or len(names) == 2)


# --- ranking --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("space", ["sequential", "textnas"])
def test_ranking_scores_every_path_of_a_small_space(two_layers: Stores, tmp_path: Path, space: str) -> None:
    operations = ("convolution_3", "max_pool_3")
    search = make_search(
        two_layers, tmp_path, "random_one_shot", operations, space=space, depth=2, epochs=1, candidates=3, rank_rows=40
    )
    found = STRATEGIES["random_one_shot"](search)
    every = list(search.space.every())
    assert set(search.paths) == {spell(one) for one in every}
    assert sum(len(batch["mask"]) for batch in search.ranking_batches) == 40
    expected = {
        spell(one): block_scores(extract_cells(search.space, one), two_layers[1], [0, 1], search.ranking_batches)[0]
        for one in every
    }
    assert {name: score for name, (_, score) in search.paths.items()} == pytest.approx(expected, rel=1e-5)
    best = sorted(expected, key=expected.__getitem__)[:3]
    assert [spell(one.architecture) for one in found] == best
    assert [one.inherited for one in found] == pytest.approx([expected[name] for name in best], rel=1e-5)


@pytest.mark.parametrize("strategy", ["random_one_shot", "darts"])
def test_evolution_ranks_the_paths_of_a_large_space(two_layers: Stores, tmp_path: Path, strategy: str) -> None:
    search = make_search(
        two_layers, tmp_path, strategy, CHOICES, depth=3, epochs=1, candidates=3, rank_limit=20, rank_rows=None,
        ranking="weights", population=8,
    )  # fmt: skip
    found = STRATEGIES[strategy](search)
    assert search.space.count() == 64 and 8 <= len(search.paths) <= 20
    for architecture, score in search.paths.values():
        true = block_scores(extract_cells(search.space, architecture), two_layers[1], [0, 1])
        assert score == pytest.approx(true[0], rel=1e-5)
    best = sorted(search.paths, key=lambda name: search.paths[name][1])[:3]
    assert [spell(one.architecture) for one in found] == best


def test_candidates_go_on_from_the_supernets_weights(two_layers: Stores, tmp_path: Path) -> None:
    search = make_search(two_layers, tmp_path, "random_one_shot", epochs=2, candidate_epochs=0, rank_rows=None)
    for one in STRATEGIES["random_one_shot"](search):
        assert one.score == pytest.approx(one.inherited, rel=1e-5)
    search = make_search(two_layers, tmp_path, "random_one_shot", epochs=2, candidate_epochs=2, rank_rows=None)
    assert all(one.score < one.inherited for one in STRATEGIES["random_one_shot"](search) if "conv" in str(one))


@pytest.mark.parametrize(("space", "depth"), [("adabert", 1), ("textnas", 2)])
def test_most_probable_orders_wired_architectures(space: str, depth: int) -> None:
    operations = ("convolution_3", "zero", "max_pool_3")
    own = CellSpace(space=space, depth=depth, teacher_size=8, hidden_size=8, operations=operations)
    generator = np.random.default_rng(0)
    probabilities = {}
    for label, options in own.choices().items():
        if space == "adabert" and label.endswith("_inputs"):
            continue  # no weights of their own
        names = [one if isinstance(one, str) else "+".join(map(str, one)) for one in options]
        probabilities[label] = dict(zip(names, generator.dirichlet(np.ones(len(names))), strict=True))
    found = most_probable(own, probabilities, 30)
    assert len({spell(one) for one in found}) == 30
    every = {spell(one): one for one in own.every()}

    def chance(one: Architecture) -> float:
        return float(
            np.prod([
                probabilities[label]["+".join(map(str, choice)) if isinstance(choice, list) else choice]
                for label, choice in one.items() if label in probabilities
            ])
        )  # fmt: skip

    assert all(spell(one) in every for one in found)
    ours = [chance(one) for one in found]
    if space == "textnas":
        expected = sorted((chance(one) for one in every.values()), reverse=True)[:30]
    else:  # the same wires, and never zero
        wires = {label: choice for label, choice in found[0].items() if isinstance(choice, list)}
        same = [one for one in every.values() if wires.items() <= one.items() and "zero" not in map(str, one.values())]
        expected = sorted(map(chance, same), reverse=True)[:30]
    assert ours == pytest.approx(expected)


# --- costs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["random", "evolution", "tpe", "grid", "random_one_shot", "darts"])
def test_nothing_over_max_cost_is_trained_or_ranked(
    convolution: Stores, tmp_path: Path, strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    operations = ("convolution_3", "convolution_1", "max_pool_3", "zero")
    one, three = WIDTH * WIDTH + WIDTH, 3 * WIDTH * WIDTH + WIDTH
    search = make_search(
        convolution, tmp_path, strategy, operations, depth=2, epochs=1, cost="num_params", max_cost=float(2 * one),
        candidates=20, samples=12, batch_size=32, options={"max_rows": 32},
    )  # fmt: skip
    assert search.costs == {"convolution_3": three, "convolution_1": one, "max_pool_3": 0, "zero": 0}
    sizes: list[int] = []

    def noted(cells: Sequence[Any], *arguments: Any) -> list[float]:
        for one in cells:
            operations = torch.nn.ModuleList(layer.operation for layer in one.body.layers)
            sizes.append(sum(parameter.numel() for parameter in operations.parameters()))
        return block_scores(cells, *arguments)

    monkeypatch.setattr(evaluator, "block_scores", noted)
    found = run(search)
    assert found and len(sizes) >= len(found) and max(sizes) <= 2 * one
    names = {spell(one.architecture) for one in found}
    allowed = {
        f"{a}, {b}" for a, b in itertools.product(operations, repeat=2) if "convolution_3" not in (a, b)
    }  # fmt: skip
    assert names <= allowed
    if strategy in ("grid", "random_one_shot", *DIFFERENTIABLE):
        assert names == allowed


def test_a_budget_that_nothing_meets_names_the_cheapest(convolution: Stores, tmp_path: Path) -> None:
    search = make_search(
        convolution, tmp_path, "random", ("convolution_3", "convolution_1"), depth=2, cost="num_params", max_cost=500.0
    )
    with pytest.raises(ConfigError, match=r"at least 544 num_params, .* depth 2 costs, got 500"):
        check_budget(search)
    wired = make_search(
        convolution, tmp_path, "random", ("convolution_3", "convolution_1"), space="adabert", cost="num_params",
        max_cost=float(6 * 272),
    )  # fmt: skip
    check_budget(wired)  # six edges are kept, whichever they are


def test_costs_of_operations_by_hand() -> None:
    names = ("convolution_3", "feed_forward_2", "max_pool_3")
    assert operation_costs(names, 8, "num_params", 5) == {
        "convolution_3": 3 * 64 + 8, "feed_forward_2": 2 * 2 * 64 + 16 + 8, "max_pool_3": 0,
    }  # fmt: skip
    assert operation_costs(names, 8, "num_flops", 5) == {
        "convolution_3": 2 * 5 * 3 * 64, "feed_forward_2": 2 * 5 * 4 * 64, "max_pool_3": 0,
    }  # fmt: skip
    latency = operation_costs(("feed_forward_4", "zero"), 256, "latency_ms", 64)
    assert latency["feed_forward_4"] > latency["zero"] > 0


def test_a_heavy_cost_outweighs_the_planted_operation(convolution: Stores, tmp_path: Path) -> None:
    for weight, expected in ((0.0, "convolution_3"), (20.0, "zero")):
        search = make_search(
            convolution, tmp_path, "darts", ("convolution_3", "zero"), cost="num_params", cost_weight=weight
        )
        assert STRATEGIES["darts"](search)[0].architecture == {"layer_0": expected}


def test_a_budget_that_hardly_anything_meets_says_so(convolution: Stores, tmp_path: Path) -> None:
    operations = ("convolution_1", "convolution_3", "convolution_5", "convolution_7", "zero")
    search = make_search(
        convolution, tmp_path, "random_one_shot", operations, depth=5, cost="num_params", max_cost=1.0, epochs=1
    )
    with pytest.raises(ConfigError, match="none of 100 drawn is cheap enough"):
        run(search)


def test_halving_trains_the_better_half_on_twice_the_rows(
    convolution: Stores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares: list[float] = []
    inner = DistillationEvaluator.fit_cells

    def fit_cells(self: DistillationEvaluator, cells: Sequence[Any], epochs: int, share: float = 1.0) -> list[float]:
        shares.append(share)
        if len(shares) == 5:
            raise CandidateError("diverged")  # that candidate keeps what it had
        return inner(self, cells, epochs, share)

    monkeypatch.setattr(DistillationEvaluator, "fit_cells", fit_cells)
    search = make_search(convolution, tmp_path, "random", samples=4, halvings=2, candidates=1, epochs=8)
    found = run(search)
    assert shares == [0.25] * 4 + [0.5] * 2 + [1.0]
    assert len(found) == 1 and dict(found[0].architecture) == {"layer_0": "convolution_3"}


def test_a_plateau_ends_the_sampling(convolution: Stores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([0.5, 0.4, 0.399, 0.41, 0.1])
    monkeypatch.setattr(DistillationEvaluator, "fit_cells", lambda self, cells, epochs, share=1.0: [next(scores)])
    operations = ("max_pool_3", "average_pool_3", "convolution_1", "convolution_3", "convolution_5")
    found = run(make_search(convolution, tmp_path, "random", operations, samples=5, patience=2))
    assert [one.score for one in found] == [0.399, 0.4, 0.41, 0.5]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strategy": "evolution", "halvings": 1}, "halvings is for random"),
        ({"strategy": "darts", "patience": 3}, "patience counts samples"),
    ],
)
def test_schedules_that_do_not_fit_a_strategy_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_study({"name": "x", "cell": settings})
