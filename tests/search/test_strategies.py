"""Every strategy on blocks that are exactly one architecture of the space."""

import importlib.util
import itertools
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from planted import CHOICES, RUNNABLE, WIDTH, Stores, make_search, plant, run_search
from tiny import tiny_study

from nni_bertnas.errors import CandidateError, ConfigError
from nni_bertnas.search import differentiable
from nni_bertnas.search.differentiable import most_probable, perturbation
from nni_bertnas.search.search import Costs, Search, mean_score
from nni_bertnas.search.strategies import STRATEGIES, OneShotOptions, check_search
from nni_bertnas.search.watch import architecture_weights
from nni_bertnas.student.candidates import Candidate
from nni_bertnas.training import cells as training
from nni_bertnas.training.cells import CellTrainer, block_scores
from search_space.cells import Architecture, spell, spell_choice
from search_space.listing import Space
from search_space.spaces import CellSpace, extract_cells

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def convolution(tmp_path_factory: pytest.TempPathFactory) -> Stores:
    return plant(tmp_path_factory.mktemp("one"), "sequential", 1, {"layer_0": "convolution_3"})


@pytest.fixture(scope="module")
def two_layers(tmp_path_factory: pytest.TempPathFactory) -> Stores:
    return plant(tmp_path_factory.mktemp("two"), "sequential", 2, {"layer_0": "convolution_3", "layer_1": "max_pool_3"})


def test_what_cannot_be_searched_is_refused_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def check(**cell: object) -> None:
        check_search(tiny_study(tmp_path, cell=cell).cell, 16)

    with pytest.raises(ConfigError, match=r"textnas has 24,576 at depth 3 \(at most 2,000\); name fewer"):
        check(space="textnas", strategy="grid", depths=[1, 3])
    check(space="textnas", strategy="grid", depths=[1])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tianshou" else True)
    with pytest.raises(ConfigError, match=r"enas needs tianshou, .*pip install .*or choose random_one_shot"):
        check(strategy="enas")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    for space in ("sequential", "layers", "nasbert", "textnas"):
        check(space=space, strategy="enas")
    with pytest.raises(ConfigError, match=r"enas cannot search adabert.*choose random_one_shot"):
        check(space="adabert", strategy="enas")
    with pytest.raises(ConfigError, match=r"cell\.space, cell\.operations: unknown space 'mesh'"):
        check(space="mesh")
    with pytest.raises(ConfigError, match="attention_12 needs a width that 12 divides, got 16"):
        check(operations=["attention_12", "zero"])


# --- planted truth --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", RUNNABLE)
def test_every_strategy_finds_a_planted_layer(convolution: Stores, tmp_path: Path, strategy: str) -> None:
    found = run_search(make_search(convolution, tmp_path, strategy), strategy)
    assert found[0][0].architecture == {"layer_0": "convolution_3"}
    assert mean_score(found[0]) < 0.92 * mean_score(found[1])


@pytest.mark.parametrize("strategy", ["darts", "evolution"])
def test_two_planted_layers_are_found_in_their_order(two_layers: Stores, tmp_path: Path, strategy: str) -> None:
    operations = ("convolution_3", "max_pool_3", "zero")
    options = {"samples": 9} if strategy == "evolution" else {}
    search = make_search(two_layers, tmp_path, strategy, operations, depth=2, options=options)
    assert run_search(search, strategy)[0][0].architecture == {"layer_0": "convolution_3", "layer_1": "max_pool_3"}


def test_a_planted_path_with_wires_is_found(tmp_path: Path) -> None:
    truth: Architecture = {
        "layer_0": "convolution_3", "layer_1_input": [1], "layer_1": "max_pool_3", "layer_1_skip_0": "identity",
    }  # fmt: skip
    stores = plant(tmp_path, "textnas", 2, truth, num_rows=200)
    search = make_search(
        stores, tmp_path, "darts", ("convolution_3", "max_pool_3"), space="textnas", depth=2, epochs=6,
        candidates=4, options={"ranking": "weights"},
    )  # fmt: skip
    found = STRATEGIES["darts"].load()(search)
    best = sorted((group[0] for group in found.groups), key=lambda one: one.score)
    assert len(found.paths) == 16 and best[0].architecture == truth and best[0].score < 0.85 * best[1].score


def test_darts_moves_its_weights_to_the_planted_operation(convolution: Stores, tmp_path: Path) -> None:
    reports: list[dict[str, float]] = []
    search = make_search(convolution, tmp_path, "darts", candidates=4, epochs=6, report=reports.append)
    found = [group[0] for group in STRATEGIES["darts"].load()(search).groups]
    assert found[0].architecture == {"layer_0": "convolution_3"}  # the most probable one comes first
    searched = [report for report in reports if "architecture_loss" in report]
    shares = [report["probability/layer_0/convolution_3"] for report in searched]
    assert len(searched) == 6 and shares[0] > 0.25 and shares[-1] > 0.4 and shares == sorted(shares)
    assert searched[-1]["architecture_entropy"] < searched[0]["architecture_entropy"] < np.log(4)
    assert searched[-1]["train_loss"] < searched[0]["train_loss"]
    scores = {one.architecture["layer_0"]: one.score for one in found}
    assert len(scores) == 4 and scores["convolution_3"] < 0.6 * max(scores.values())


def test_an_operation_is_worth_what_its_absence_harms(
    convolution: Stores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict = {}

    def watched(search: Search, supernet: CellSpace, penalty: None) -> dict[str, dict[str, float]]:
        ((label, (names, alpha)),) = architecture_weights(supernet).items()
        before = alpha.detach().clone()
        shares = perturbation(search, supernet)
        assert torch.equal(alpha, before)
        harms = []
        for name in names:  # the mixture without it, its own shares worked out here
            rest = torch.tensor([0.0 if other == name else 1.0 for other in names]) * before.exp()
            with torch.no_grad():
                alpha.copy_((rest / rest.sum()).clamp(min=1e-38).log())
            harms.append(search.trainer.score(list(supernet.cells), search.ranking_batches)[0])
        with torch.no_grad():
            alpha.copy_(before)
        seen["order"] = [name for _, name in sorted(zip(harms, names, strict=True))]
        seen["shares"] = shares[label]
        deviations = (np.array(harms) - np.mean(harms)) / np.std(harms)
        expected = np.exp(deviations) / np.exp(deviations).sum()
        assert list(shares[label].values()) == pytest.approx(expected.tolist(), rel=1e-2)
        return shares

    monkeypatch.setattr(differentiable, "perturbation", watched)
    search = make_search(convolution, tmp_path, "darts", epochs=6)
    found = STRATEGIES["darts"].load()(search)
    assert seen["order"][-1] == "convolution_3" == max(seen["shares"], key=seen["shares"].__getitem__)
    assert found.groups[0][0].architecture == {"layer_0": "convolution_3"}
    with pytest.raises(ConfigError, match="perturbation is for darts alone"):
        tiny_study(tmp_path, cell={"strategy": "gumbel_darts", "options": {"ranking": "perturbation"}})


def test_a_mixture_gives_candidates_of_unlike_kinds(
    convolution: Stores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares = {"convolution_5": 0.4, "convolution_1": 0.3, "max_pool_3": 0.1, "average_pool_3": 0.08,
              "convolution_3": 0.07, "zero": 0.05}  # fmt: skip
    monkeypatch.setattr(differentiable, "perturbation", lambda *_: {"layer_0": shares})
    search = make_search(convolution, tmp_path, "darts", tuple(shares), candidates=4, epochs=1)
    found = [group[0].architecture["layer_0"] for group in STRATEGIES["darts"].load()(search).groups]
    assert found == ["convolution_5", "max_pool_3", "zero", "convolution_1"]


def test_trial_strategies_try_no_architecture_twice(convolution: Stores, tmp_path: Path) -> None:
    """More samples than there are architectures: every one is tried once, and the search ends."""
    for strategy in ("random", "evolution", "tpe"):
        search = make_search(convolution, tmp_path, strategy, CHOICES[:2], epochs=1)
        names = [group[0].architecture["layer_0"] for group in run_search(search, strategy)]
        assert len(names) == len(set(names)) <= 2 and (strategy == "evolution" or len(names) == 2)


# --- ranking --------------------------------------------------------------------------------------------------------


def noting_supernet(*arguments: Any, **settings: Any) -> tuple[Search, list[CellSpace]]:
    """A search, and where it puts the supernet that it trains."""
    kept: list[CellSpace] = []

    class Noting(Search):
        def supernet(self) -> CellSpace:
            kept.append(super().supernet())
            return kept[-1]

    search = make_search(*arguments, **settings)
    return Noting(**{field.name: getattr(search, field.name) for field in fields(search)}), kept


@pytest.mark.parametrize("space", ["sequential", "textnas"])
def test_ranking_scores_every_path_of_a_small_space(two_layers: Stores, tmp_path: Path, space: str) -> None:
    operations = ("convolution_3", "max_pool_3")
    search, kept = noting_supernet(
        two_layers, tmp_path, "random_one_shot", operations, space=space, depth=2, epochs=1, candidates=3,
        options={"rank_rows": 40},
    )  # fmt: skip
    found = STRATEGIES["random_one_shot"].load()(search)
    every = list(search.space.every())
    assert set(found.paths) == {spell(one) for one in every}
    assert sum(map(len, search.ranking_batches)) == 40
    expected = {
        spell(one): block_scores(extract_cells(kept[0], one), two_layers[1], [0, 1], search.ranking_batches)[0]
        for one in every
    }
    assert {name: score for name, (_, score) in found.paths.items()} == pytest.approx(expected, rel=1e-5)
    best = sorted(expected, key=expected.__getitem__)[:3]
    assert [spell(group[0].architecture) for group in found.groups] == best
    assert [group[0].inherited for group in found.groups] == pytest.approx([expected[name] for name in best], rel=1e-5)


@pytest.mark.parametrize("strategy", ["random_one_shot", "darts"])
def test_evolution_ranks_the_paths_of_a_large_space(two_layers: Stores, tmp_path: Path, strategy: str) -> None:
    options = {"rank_limit": 20, "rank_rows": None, "population": 8}
    options |= {"ranking": "weights"} if strategy == "darts" else {}
    search, kept = noting_supernet(
        two_layers, tmp_path, strategy, CHOICES, depth=3, epochs=1, candidates=3, options=options
    )
    found = STRATEGIES[strategy].load()(search)
    assert search.space.count() == 64 and 8 <= len(found.paths) <= 20
    for architecture, score in found.paths.values():
        true = block_scores(extract_cells(kept[0], architecture), two_layers[1], [0, 1])
        assert score == pytest.approx(true[0], rel=1e-5)
    best = sorted(found.paths, key=lambda name: found.paths[name][1])[:3]
    assert [spell(group[0].architecture) for group in found.groups] == best


def test_candidates_go_on_from_the_supernets_weights(two_layers: Stores, tmp_path: Path) -> None:
    found: dict[int, dict[str, Candidate]] = {}
    for epochs in (0, 2):
        options = {"candidate_epochs": epochs, "rank_rows": None}
        search = make_search(two_layers, tmp_path, "random_one_shot", epochs=2, candidates=4, options=options)
        groups = STRATEGIES["random_one_shot"].load()(search).groups
        found[epochs] = {group[0].architecture["layer_0"]: group[0] for group in groups}
    assert set(found[0]) == set(found[2]) == set(CHOICES)
    for one in found[0].values():
        assert one.score == pytest.approx(one.inherited, rel=1e-5)
    assert found[2]["convolution_3"].score < 0.99 * found[2]["convolution_3"].inherited


def test_most_probable_is_exact() -> None:
    space = Space.of("sequential", 3, 8, ("identity", "zero", "max_pool_3"))
    probabilities = {
        "layer_0": {"identity": 0.5, "zero": 0.4, "max_pool_3": 0.1},
        "layer_1": {"identity": 0.6, "zero": 0.3, "max_pool_3": 0.1},
        "layer_2": {"identity": 0.34, "zero": 0.33, "max_pool_3": 0.33},
    }
    every = {
        key: np.prod([probabilities[f"layer_{layer}"][name] for layer, name in enumerate(key)])
        for key in itertools.product(space.operations, repeat=3)
    }
    found = [tuple(one.values()) for one in most_probable(space, probabilities, 7)]
    assert [every[key] for key in found] == pytest.approx(sorted(every.values(), reverse=True)[:7])


@pytest.mark.parametrize(("space", "depth"), [("adabert", 1), ("textnas", 2)])
def test_most_probable_orders_wired_architectures(space: str, depth: int) -> None:
    operations = ("convolution_3", "zero", "max_pool_3")
    own = Space.of(space, depth, 8, operations)
    generator = np.random.default_rng(0)
    probabilities = {}
    for label, options in own.choices.items():
        if space == "adabert" and label.endswith("_inputs"):
            continue  # no weights of their own
        names = [spell_choice(one) for one in options]
        probabilities[label] = dict(zip(names, generator.dirichlet(np.ones(len(names))), strict=True))
    found = most_probable(own, probabilities, 30)
    assert len({spell(one) for one in found}) == 30
    every = {spell(one): one for one in own.every()}

    def chance(one: Architecture) -> float:
        return float(
            np.prod([
                probabilities[label][spell_choice(choice)]
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
    options = {"samples": 12} if strategy in ("random", "evolution", "tpe") else {}
    search = make_search(
        convolution, tmp_path, strategy, operations, depth=2, epochs=1, cost="num_params", max_cost=float(2 * one),
        candidates=20, batch_size=32, max_rows=32, options=options,
    )  # fmt: skip
    assert search.costs.of_operations == {"convolution_3": three, "convolution_1": one, "max_pool_3": 0, "zero": 0}
    sizes: list[int] = []

    def noted(cells: Sequence[Any], *arguments: Any) -> list[float]:
        for one in cells:
            operations = torch.nn.ModuleList(layer.operation for layer in one.body.layers)
            if hasattr(operations[0], "_arch_alpha"):  # the mixture of all is no candidate
                continue
            sizes.append(sum(parameter.numel() for parameter in operations.parameters()))
        return block_scores(cells, *arguments)

    monkeypatch.setattr(training, "block_scores", noted)
    found = run_search(search, strategy)
    assert found and len(sizes) >= len(found) and max(sizes) <= 2 * one
    names = {spell(group[0].architecture) for group in found}
    allowed = {
        f"{a}, {b}" for a, b in itertools.product(operations, repeat=2) if "convolution_3" not in (a, b)
    }  # fmt: skip
    assert names <= allowed
    if strategy in ("grid", "random_one_shot", "darts"):
        assert names == allowed


def test_a_budget_that_nothing_meets_names_the_cheapest() -> None:
    costs = Costs(kind="num_params", of_operations={"convolution_3": 784.0, "convolution_1": 272.0}, most=500.0)
    names = ("convolution_3", "convolution_1")
    with pytest.raises(ConfigError, match=r"at least 544 num_params, .* depth 2 costs, got 500"):
        costs.check(Space.of("sequential", 2, WIDTH, names))
    wired = replace(costs, most=float(6 * 272))
    wired.check(Space.of("adabert", 1, WIDTH, names))  # six edges are kept, whichever they are


def test_a_heavy_cost_outweighs_the_planted_operation(convolution: Stores, tmp_path: Path) -> None:
    for weight, expected in ((0.0, "convolution_3"), (20.0, "zero")):
        search = make_search(
            convolution, tmp_path, "darts", ("convolution_3", "zero"), cost="num_params",
            options={"cost_weight": weight},
        )  # fmt: skip
        assert STRATEGIES["darts"].load()(search).groups[0][0].architecture == {"layer_0": expected}


def test_a_budget_that_hardly_anything_meets_says_so(convolution: Stores, tmp_path: Path) -> None:
    operations = ("convolution_1", "convolution_3", "convolution_5", "convolution_7", "zero")
    search = make_search(
        convolution, tmp_path, "random_one_shot", operations, depth=5, cost="num_params", max_cost=1.0, epochs=1
    )
    with pytest.raises(ConfigError, match="none of 100 drawn is cheap enough"):
        run_search(search, "random_one_shot")


def test_halving_trains_the_better_half_on_twice_the_rows(
    convolution: Stores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares: list[float] = []
    inner = CellTrainer.fit_cells

    def fit_cells(self: CellTrainer, cells: Sequence[Any], epochs: int, share: float = 1.0) -> list[float]:
        shares.append(share)
        if len(shares) == 5:
            raise CandidateError("diverged")  # that candidate keeps what it had
        return inner(self, cells, epochs, share)

    monkeypatch.setattr(CellTrainer, "fit_cells", fit_cells)
    options = {"samples": 4, "halvings": 2}
    found = run_search(make_search(convolution, tmp_path, "random", candidates=1, epochs=8, options=options), "random")
    assert shares == [0.25] * 4 + [0.5] * 2 + [1.0]
    assert len(found) == 1 and dict(found[0][0].architecture) == {"layer_0": "convolution_3"}


def test_a_plateau_ends_the_sampling(convolution: Stores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([0.5, 0.4, 0.399, 0.41, 0.1])
    monkeypatch.setattr(CellTrainer, "fit_cells", lambda self, cells, epochs, share=1.0: [next(scores)])
    operations = ("max_pool_3", "average_pool_3", "convolution_1", "convolution_3", "convolution_5")
    search = make_search(convolution, tmp_path, "random", operations, options={"samples": 5, "patience": 2})
    assert [mean_score(group) for group in run_search(search, "random")] == [0.399, 0.4, 0.41, 0.5]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_row_leads_to_a_function(strategy: str) -> None:
    row = STRATEGIES[strategy]
    assert row.load().__module__ == f"nni_bertnas.search.{row.family}" and row.load().__doc__
    assert row.source and (row.family != "trials") == issubclass(row.options, OneShotOptions)
