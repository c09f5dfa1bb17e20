"""The mixture of a DARTS supernet, and what is added to its architecture's loss."""

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
from planted import CHOICES, Stores, make_search, mixed_supernet, plant, run_search, run_watched

from nni_bertnas.search.mixtures import Mixture, mixed
from nni_bertnas.search.penalties import BetaDecay, EfficiencyPenalty, ZeroOne
from nni_bertnas.search.watch import architecture_weights, probabilities
from search_space.spaces import CellSpace


@pytest.fixture(scope="module")
def convolution(tmp_path_factory: pytest.TempPathFactory) -> Stores:
    return plant(tmp_path_factory.mktemp("one"), "sequential", 1, {"layer_0": "convolution_3"})


def mixture(**options: Any) -> tuple[CellSpace, Mixture, torch.Tensor, torch.Tensor]:
    """A supernet of one decision, its mixture, and what to give to that."""
    torch.manual_seed(0)
    own = CellSpace(space="sequential", depth=1, teacher_size=8, hidden_size=8, operations=CHOICES)
    space = DARTS(mutation_hooks=[partial(mixed, **options)]).mutate_model(own)
    ((_, (_, alpha)),) = architecture_weights(space).items()
    alpha.data.normal_()
    mask = torch.ones(4, 5, dtype=torch.bool)
    mask[0, 2:] = False
    return space, space.cells[0].body.layers[0].operation, torch.randn(4, 5, 8), mask


@pytest.mark.parametrize("share", [0.5, 0.99])
@pytest.mark.parametrize("independent", [False, True])
def test_operations_are_left_out_of_training_alone(share: float, independent: bool) -> None:
    _, choice, x, mask = mixture(dropout=share, independent=independent)
    names, alpha = choice.names, choice._arch_alpha.detach()

    def gates(numbers: Any) -> torch.Tensor:
        own = 1 / (1 + (-alpha[numbers]).exp()) if independent else alpha[numbers].exp() / alpha[numbers].exp().sum()
        return own[:, None, None, None]

    alone = torch.stack([choice[name](x, mask) for name in names])
    numbers: list[int] = []
    for number, name in enumerate(names):
        choice[name].register_forward_hook(lambda *_, number=number: numbers.append(number))
    counts = []
    for _ in range(200):
        numbers.clear()
        made = choice.train()(x, mask)
        torch.testing.assert_close(made, (gates(numbers) * alone[numbers]).sum(0))
        counts.append(len(numbers))
    assert min(counts) == 1 and np.mean(counts) == pytest.approx(4 * (1 - share) + share**4, abs=0.2)
    torch.testing.assert_close(choice.eval()(x, mask), (gates([0, 1, 2, 3]) * alone).sum(0))


@pytest.mark.parametrize("independent", [False, True])
def test_matched_operations_differ_by_their_gates_alone(independent: bool) -> None:
    _, choice, x, mask = mixture(matched=True, independent=independent)
    torch.nn.init.constant_(choice["convolution_3"].convolution.weight, 0.5)
    alone = {name: choice[name](x, mask) for name in choice.names}
    sizes = {name: float((one[mask].detach() ** 2).mean()) ** 0.5 for name, one in alone.items() if name != "zero"}
    assert max(sizes.values()) > 1.5 * min(sizes.values()) and not alone["zero"].any()
    size = sum(sizes.values()) / 3
    expected = sum(
        gate * alone[name] * size / sizes[name]
        for name, gate in zip(choice.names, choice.gates(), strict=True)
        if name != "zero"
    )
    made = choice(x, mask)
    torch.testing.assert_close(made, expected)
    # A sentence's padding changes nothing, and every operation is trained.
    other = x.clone()
    other[~mask] = 9.0
    torch.testing.assert_close(choice(other, mask)[mask], made[mask])
    made[mask].square().mean().backward()
    assert all(float(one.grad.abs().max()) > 0 for one in choice.parameters() if one.requires_grad)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"mixture_dropout": 0.5},
        {"match_variance": True},
        {"beta_decay": 0.5},
        {"gates": "sigmoid"},
        {"gates": "sigmoid", "ranking": "weights", "mixture_dropout": 0.3, "match_variance": True, "beta_decay": 0.1},
    ],
)
def test_searches_find_the_planted_layer(convolution: Stores, tmp_path: Path, options: dict[str, Any]) -> None:
    search = make_search(convolution, tmp_path, "darts", epochs=6, options=options)
    assert run_search(search, "darts")[0][0].architecture == {"layer_0": "convolution_3"}


# --- penalties ------------------------------------------------------------------------------------------------------

COSTS = {"max_pool_3": 1.0, "average_pool_3": 2.0, "convolution_3": 10.0, "zero": 0.0, "identity": 0.5}


@pytest.mark.parametrize(("space", "depth", "blocks"), [("sequential", 3, 1), ("textnas", 2, 2), ("adabert", 1, 1)])
def test_the_penalty_against_a_naive_sum(space: str, depth: int, blocks: int) -> None:
    mixed = mixed_supernet(space, depth, blocks)
    expected, most = 0.0, 0.0
    for label, choice in probabilities(mixed).items():
        if not label.endswith("_input"):
            expected += sum(share * COSTS[name] for name, share in choice.items())
            most += max(COSTS[name] for name in choice)
    value = EfficiencyPenalty(COSTS, 0.3)(mixed)
    assert value.item() == pytest.approx(0.3 * expected / most, rel=1e-5) and 0 < value.item() < 0.3


def test_the_penalty_pushes_away_from_what_costs() -> None:
    mixed = mixed_supernet(depth=1)
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
    assert EfficiencyPenalty(dict.fromkeys(COSTS, 0.0), 1.0)(mixed_supernet()).item() == 0.0


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


def test_beta_decay_against_a_naive_sum() -> None:
    space, decay = mixed_supernet("textnas", 2), BetaDecay(0.6)
    assert float(decay(space)) == 0.0
    of = SimpleNamespace(current_epoch=1, num_training_batches=10, max_epochs=4)
    decay.on_train_batch_start(of, None, None, 5)
    sums = [float(np.log(np.exp(alpha.detach().numpy()).sum())) for _, alpha in architecture_weights(space).values()]
    value = decay(space)
    assert len(sums) == 4 and float(value) == pytest.approx(0.6 * 0.375 * np.mean(sums), rel=1e-5)
    value.backward()
    for _, alpha in architecture_weights(space).values():  # what leads is held back most
        torch.testing.assert_close(alpha.grad, 0.6 * 0.375 * alpha.detach().softmax(0) / 4)


def test_zero_one_pushes_gates_apart() -> None:
    space, choice, *_ = mixture(independent=True)
    gates = 1 / (1 + np.exp(-choice._arch_alpha.detach().numpy()))
    value = ZeroOne(3.0)(space)
    assert float(value) == pytest.approx(-3 * np.mean((gates - 0.5) ** 2), rel=1e-5)
    value.backward()
    assert (np.sign(-choice._arch_alpha.grad.numpy()) == np.sign(gates - 0.5)).all()


@pytest.mark.slow
def test_penalties_are_logged_and_move_the_architecture(convolution: Stores, tmp_path: Path) -> None:
    plain = run_watched(convolution, tmp_path, epochs=2)
    decayed = run_watched(convolution, tmp_path, epochs=2, beta_decay=20.0)
    assert abs(decayed[-1]["beta_decay"]) > 0 and "beta_decay" not in plain[0]
    assert decayed[-1]["architecture_entropy"] > plain[-1]["architecture_entropy"]
    fair = run_watched(convolution, tmp_path, epochs=2, gates="sigmoid")
    assert 0 > fair[0]["zero_one"] > -2.5 and "zero_one" not in decayed[0]
