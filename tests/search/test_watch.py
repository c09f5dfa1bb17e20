"""What watches and guards a differentiable search."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from planted import CHOICES, Stores, make_search, mixed_supernet, plant, run_search, run_watched

from nni_bertnas.search.strategies import STRATEGIES
from nni_bertnas.search.watch import (
    OperationDropout,
    architecture_weights,
    collapse,
    entropy,
    probabilities,
)

DIFFERENTIABLE = [name for name, row in STRATEGIES.items() if row.family == "differentiable"]
MASK = torch.tensor([[1, 1, 1, 0]]).bool()


@pytest.fixture(scope="module")
def convolution(tmp_path_factory: pytest.TempPathFactory) -> Stores:
    return plant(tmp_path_factory.mktemp("one"), "sequential", 1, {"layer_0": "convolution_3"})


def test_probabilities_are_the_softmax_of_the_weights() -> None:
    mixed = mixed_supernet("textnas", 2)
    found = probabilities(mixed)
    assert list(found["layer_0"]) == list(CHOICES) and list(found["layer_1_input"]) == ["0", "1"]
    assert list(found["layer_1_skip_0"]) == ["zero", "identity"]
    for label, (names, alpha) in architecture_weights(mixed).items():
        powers = np.exp(alpha.detach().numpy().astype(float))
        assert [found[label][name] for name in names] == pytest.approx(powers / powers.sum(), rel=1e-5)
    assert probabilities(mixed) == found


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
    mixed = mixed_supernet(depth=1).train()
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
