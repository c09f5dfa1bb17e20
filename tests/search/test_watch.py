"""What watches and guards a differentiable search."""

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from nni.nas.nn.pytorch import LayerChoice, ModelSpace
from nni.nas.oneshot.pytorch.profiler import ExpectationProfilerPenalty
from nni.nas.profiler.pytorch.flops import NumParamsProfiler
from nni.nas.strategy import DARTS
from planted import CHOICES, Stores, make_search, plant, run_search
from tiny import tiny_study

from nni_bertnas.errors import ConfigError
from nni_bertnas.search.differentiable import _leave_out, _sum_all_edges
from nni_bertnas.search.strategies import STRATEGIES
from nni_bertnas.search.watch import (
    EfficiencyPenalty,
    OperationDropout,
    architecture_weights,
    collapse,
    entropy,
    probabilities,
)
from search_space.spaces import CellSpace

DIFFERENTIABLE = [name for name, row in STRATEGIES.items() if row.family == "differentiable"]
MASK = torch.tensor([[1, 1, 1, 0]]).bool()


@pytest.fixture(scope="module")
def convolution(tmp_path_factory: pytest.TempPathFactory) -> Stores:
    return plant(tmp_path_factory.mktemp("one"), "sequential", 1, {"layer_0": "convolution_3"})


def supernet(space: str = "sequential", depth: int = 2, blocks: int = 1) -> CellSpace:
    """With architecture weights that are far from even."""
    torch.manual_seed(0)
    own = CellSpace(space=space, depth=depth, teacher_size=8, hidden_size=8, operations=CHOICES, blocks=blocks)
    mixed = DARTS(mutation_hooks=[_sum_all_edges]).mutate_model(own)
    for _, alpha in architecture_weights(mixed).values():
        alpha.data.normal_()
    return mixed


def test_probabilities_are_the_softmax_of_the_weights() -> None:
    mixed = supernet("textnas", 2)
    found = probabilities(mixed)
    assert list(found["layer_0"]) == list(CHOICES) and list(found["layer_1_input"]) == ["0", "1"]
    assert list(found["layer_1_skip_0"]) == ["zero", "identity"]
    for label, (names, alpha) in architecture_weights(mixed).items():
        powers = np.exp(alpha.detach().numpy().astype(float))
        assert [found[label][name] for name in names] == pytest.approx(powers / powers.sum(), rel=1e-5)
    assert probabilities(mixed) == found


def run_watched(
    stores: Stores, folder: Path, strategy: str = "darts", *, epochs: int, cost: str | None = None, **options: Any
) -> list[dict[str, float]]:
    """Every epoch's metrics of the supernet's training."""
    reports: list[dict[str, float]] = []
    search = make_search(
        stores, folder, strategy, epochs=epochs, cost=cost, report=reports.append,
        options={"candidate_epochs": 0, **options},
    )  # fmt: skip
    run_search(search, strategy)
    return reports


@pytest.mark.slow
@pytest.mark.parametrize("strategy", DIFFERENTIABLE)
def test_every_epoch_logs_probabilities_entropy_and_gradients(
    convolution: Stores, tmp_path: Path, strategy: str
) -> None:
    reports = run_watched(convolution, tmp_path, strategy, epochs=2)
    assert [report["epoch"] for report in reports] == [0, 1]
    for report in reports:
        shares = [report[f"probability/layer_0/{name}"] for name in CHOICES]
        assert sum(shares) == pytest.approx(1, abs=1e-5)
        assert report["architecture_entropy"] == pytest.approx(entropy(shares), abs=1e-4)
        assert report["architecture_gradient_norm"] > 0 and report["weight_gradient_norm"] > 0
    assert reports[0]["architecture_entropy"] != reports[1]["architecture_entropy"]


@pytest.mark.slow
def test_the_architecture_stands_still_while_it_warms_up(convolution: Stores, tmp_path: Path) -> None:
    reports = run_watched(convolution, tmp_path, epochs=4, warmup_epochs=2)
    shares = [[report[f"probability/layer_0/{name}"] for name in CHOICES] for report in reports]
    assert shares[0] == shares[1] == pytest.approx([0.25] * 4, abs=2e-3) and shares[1] != shares[2]
    assert "architecture_gradient_norm" not in reports[0] and "architecture_gradient_norm" not in reports[1]
    assert reports[2]["architecture_gradient_norm"] > 0 and reports[0]["weight_gradient_norm"] > 0
    assert "architecture_loss" not in reports[1] and "architecture_loss" in reports[2]


@pytest.mark.slow
def test_a_ranking_that_stands_still_ends_the_search(convolution: Stores, tmp_path: Path) -> None:
    reports = run_watched(convolution, tmp_path, epochs=12, stable_epochs=2)
    assert 3 <= len(reports) < 12
    leaders = [max(CHOICES, key=lambda name: report[f"probability/layer_0/{name}"]) for report in reports]
    assert len(set(leaders[-3:])) == 1
    # Not in the epochs in which nothing can move.
    reports = run_watched(convolution, tmp_path, epochs=8, stable_epochs=1, warmup_epochs=5)
    assert len(reports) > 5


def test_operation_dropout_falls_and_leaves_weights_alone() -> None:
    mixed = supernet(depth=1).train()
    choice = mixed.cells[0].body.layers[0].operation
    guard = OperationDropout(0.5)
    guard.on_fit_start(None, mixed)
    x, mask = torch.randn(40, 5, 8), torch.ones(40, 5, dtype=torch.bool)
    for epoch, rate in enumerate((0.5, 0.375, 0.25, 0.125)):
        guard.on_train_epoch_start(SimpleNamespace(current_epoch=epoch, max_epochs=4), mixed)
        assert guard._now == rate
        for name in ("max_pool_3", "average_pool_3"):
            dropped = choice[name](x, mask)
            kept = dropped != 0
            assert float((~kept).float().mean()) == pytest.approx(rate, abs=0.05)
            plain = type(choice[name])(3)(x, mask)
            torch.testing.assert_close(dropped[kept], plain[kept] / (1 - rate))
        assert (choice["convolution_3"](x, mask) != 0).all() and not choice["zero"](x, mask).any()
    mixed.eval()
    assert (choice["max_pool_3"](x, mask) != 0).all()


@pytest.mark.slow
def test_operation_dropout_holds_pools_back_in_a_search(convolution: Stores, tmp_path: Path) -> None:
    """It changes the supernet's training, and no cell that leaves it."""
    losses = []
    for rate in (0.0, 0.8):
        reports = run_watched(convolution, tmp_path, epochs=1, operation_dropout=rate)
        losses.append(reports[0]["train_loss"])
    assert losses[1] != losses[0]
    search = make_search(convolution, tmp_path, "darts", epochs=1, options={"operation_dropout": 0.8})
    for group in run_search(search, "darts"):
        assert not any(module._forward_hooks for module in group[0].trained.modules())


@pytest.mark.parametrize("share", [0.5, 0.99])
def test_a_partial_mixture_leaves_operations_out_of_training_alone(share: float) -> None:
    torch.manual_seed(0)
    own = CellSpace(space="sequential", depth=1, teacher_size=8, hidden_size=8, operations=CHOICES)
    mixed = DARTS(mutation_hooks=[partial(_leave_out, share)]).mutate_model(own)
    ((_, (names, alpha)),) = architecture_weights(mixed).items()
    choice = mixed.cells[0].body.layers[0].operation
    alpha.data.normal_()
    x, mask = torch.randn(4, 5, 8), torch.ones(4, 5, dtype=torch.bool)
    alone = torch.stack([choice[name](x, mask) for name in names])
    numbers: list[int] = []
    for number, name in enumerate(names):
        choice[name].register_forward_hook(lambda *_, number=number: numbers.append(number))
    counts = []
    for _ in range(200):
        numbers.clear()
        made = choice.train()(x, mask)
        expected = (alpha[numbers].softmax(0)[:, None, None, None] * alone[numbers]).sum(0)
        torch.testing.assert_close(made, expected)
        counts.append(len(numbers))
    assert min(counts) == 1 and np.mean(counts) == pytest.approx(4 * (1 - share) + share**4, abs=0.2)
    whole = (alpha.softmax(0)[:, None, None, None] * alone).sum(0)
    torch.testing.assert_close(choice.eval()(x, mask), whole)


@pytest.mark.slow
def test_a_search_with_a_partial_mixture_finds_the_planted_layer(convolution: Stores, tmp_path: Path) -> None:
    search = make_search(convolution, tmp_path, "darts", epochs=6, options={"mixture_dropout": 0.5})
    assert run_search(search, "darts")[0][0].architecture == {"layer_0": "convolution_3"}
    with pytest.raises(ConfigError, match="mixture_dropout is for darts alone"):
        tiny_study(tmp_path, cell={"strategy": "proxyless", "options": {"mixture_dropout": 0.5}})


def test_collapse_names_the_operations() -> None:
    assert collapse({"layer_0": "zero", "layer_1": "max_pool_3"}, 8) == (
        "collapsed to parameter-free operations: zero, max_pool_3"
    )
    assert collapse({"layer_0": "zero", "layer_1": "convolution_3"}, 8) is None
    wired = {"layer_0": "average_pool_3", "layer_1_input": [0], "layer_1": "zero", "layer_1_skip_0": "identity"}
    assert collapse(wired, 8) == "collapsed to parameter-free operations: average_pool_3, zero"
    assert collapse({**wired, "layer_1": "feed_forward_1"}, 8) is None
    assert collapse({}, 8) is None


def test_entropy() -> None:
    assert entropy([1.0, 0.0]) == 0.0 and entropy([0.25] * 4) == pytest.approx(np.log(4))


# --- the efficiency penalty -----------------------------------------------------------------------------------------

COSTS = {"max_pool_3": 1.0, "average_pool_3": 2.0, "convolution_3": 10.0, "zero": 0.0, "identity": 0.5}


@pytest.mark.parametrize(("space", "depth", "blocks"), [("sequential", 3, 1), ("textnas", 2, 2), ("adabert", 1, 1)])
def test_the_penalty_against_a_naive_sum(space: str, depth: int, blocks: int) -> None:
    mixed = supernet(space, depth, blocks)
    expected, most = 0.0, 0.0
    for label, choice in probabilities(mixed).items():
        if not label.endswith("_input"):
            expected += sum(share * COSTS[name] for name, share in choice.items())
            most += max(COSTS[name] for name in choice)
    value = EfficiencyPenalty(COSTS, 0.3)(mixed)
    assert value.item() == pytest.approx(0.3 * expected / most, rel=1e-5) and 0 < value.item() < 0.3


def test_the_penalty_pushes_away_from_what_costs() -> None:
    mixed = supernet(depth=1)
    ((_, alpha),) = architecture_weights(mixed).values()
    alpha.data.zero_()
    EfficiencyPenalty(COSTS, 1.0)(mixed).backward()
    assert alpha.grad is not None
    # d/d alpha_i of sum p c / 10 at p = 1/4: p (c_i - mean c) / 10
    expected = [0.25 * (COSTS[name] - 13 / 4) / 10 for name in CHOICES]
    assert alpha.grad.tolist() == pytest.approx(expected, abs=1e-6)
    steps = torch.optim.SGD([alpha], lr=1.0)
    before = EfficiencyPenalty(COSTS, 1.0)(mixed).item()
    steps.step()
    assert EfficiencyPenalty(COSTS, 1.0)(mixed).item() < before


def test_the_penalty_of_free_operations_is_nothing() -> None:
    assert EfficiencyPenalty(dict.fromkeys(COSTS, 0.0), 1.0)(supernet()).item() == 0.0


@pytest.mark.slow
def test_the_penalty_is_logged_and_moves_the_architecture_alone(convolution: Stores, tmp_path: Path) -> None:
    reports = run_watched(convolution, tmp_path, epochs=2, cost="num_params", cost_weight=0.7)
    plain = run_watched(convolution, tmp_path, epochs=2)
    # At the start one of four operations costs anything, with probability 1/4; it is not part of the losses.
    assert 0.1 < reports[0]["expected_cost"] < 0.7 * 0.3 and "expected_cost" not in plain[0]
    assert reports[0]["architecture_loss"] == pytest.approx(plain[0]["architecture_loss"], rel=0.1)
    share = "probability/layer_0/convolution_3"
    assert reports[-1][share] < plain[-1][share]


def test_nnis_own_penalty_gives_the_architecture_no_gradient() -> None:
    """Why there is one of ours: NNI 3.0 reads its probabilities as plain numbers."""

    class Space(ModelSpace):
        def __init__(self) -> None:
            super().__init__()
            self.choice = LayerChoice(
                {"small": torch.nn.Linear(4, 4, bias=False), "large": torch.nn.Linear(4, 4)}, label="layer"
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.choice(x)

    space = Space()
    profiler = NumParamsProfiler(space, torch.randn(1, 4))
    mixed = DARTS().mutate_model(space)
    mixed.choice._arch_alpha.data = torch.tensor([0.3, -0.2])
    shares = mixed.choice.export_probs({})
    assert all(type(share) is float for share in shares["layer"].values())
    loss = mixed(torch.randn(2, 4)).square().mean()
    total, details = ExpectationProfilerPenalty(profiler, baseline=10.0, scale=5.0)(loss, shares)
    expected = shares["layer"]["small"] * 16 + shares["layer"]["large"] * 20
    assert details["penalty"] == pytest.approx(expected) and not isinstance(details["penalty"], torch.Tensor)
    assert total.item() == pytest.approx(loss.item() + 5 * (expected / 10 - 1), rel=1e-5)
    alpha = mixed.choice._arch_alpha
    assert torch.equal(torch.autograd.grad(total, alpha, retain_graph=True)[0], torch.autograd.grad(loss, alpha)[0])
