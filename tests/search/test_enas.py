import importlib.util
from pathlib import Path

import pytest
import torch
from planted import WIDTH, make_search, run_search, write_planted_store
from tiny import tiny_study

from nni_bertnas.errors import ConfigError
from nni_bertnas.search.strategies import check_search
from search_space.cells import Layer
from search_space.operations import make_operation


def test_a_missing_package_is_named_with_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "gym" else object() if name == "tianshou"
        else find(name, *rest)
    )  # fmt: skip
    cell = tiny_study(tmp_path, cell={"strategy": "enas"}).cell
    with pytest.raises(ConfigError, match=r"needs gym, not installed: pip install 'nni-bertnas\[enas\]'"):
        check_search(cell, 16)


@pytest.mark.slow
@pytest.mark.parametrize("space", ["layers", "textnas"])
def test_the_controller_learns_from_every_sample_once(
    space: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policies = pytest.importorskip("tianshou.policy", reason="the extra enas is not installed")
    pytest.importorskip("gym", reason="the extra enas is not installed")
    learn, updates = policies.PPOPolicy.learn, []

    def counted(self, batch, *arguments, **options):
        updates.append(len(batch))
        return learn(self, batch, *arguments, **options)

    monkeypatch.setattr(policies.PPOPolicy, "learn", counted)
    torch.manual_seed(0)
    truth = Layer(make_operation("convolution_3", WIDTH), WIDTH)
    train, dev = (write_planted_store(tmp_path / name, truth, rows, 1) for name, rows in (("train", 160), ("dev", 20)))
    metrics = []
    options = {"rank_limit": 8, "population": 2, "candidate_epochs": 0}
    search = make_search(
        (train, dev), tmp_path, "enas", ("convolution_3", "zero"), space=space, depth=2, hidden_size=8, epochs=3,
        batch_size=4, learning_rate=2e-3, report=metrics.append, options=options,
    )  # fmt: skip
    found = run_search(search, "enas")
    batches = round(160 * search.options.architecture_share) // 4  # an epoch; one sample each, then one update
    assert 5 <= batches <= 20
    # NNI alone would update it in every step of the next epoch's weights, too.
    decisions = len(search.space.choices)
    assert updates == [batches * decisions] * (3 * 5)  # NNI goes five times over each buffer
    assert len(found) == 2
    assert all(group[0].inherited is not None for group in found)
    chances = [value for name, value in metrics[-1].items() if name.startswith("prob/layer_1/")]
    assert sum(chances) == pytest.approx(1, abs=1e-4)
    assert chances[0] != pytest.approx(0.5, abs=1e-6)
