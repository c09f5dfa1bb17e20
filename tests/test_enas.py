import importlib.util
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import tiny_study
from test_search import WIDTH, write_planted_store

from nni_bertnas.config import CellConfig
from nni_bertnas.errors import ConfigError
from nni_bertnas.search.evaluator import DistillationEvaluator
from nni_bertnas.search.strategies import Search, check_search, search_enas
from search_space.cells import Layer
from search_space.operations import make_operation
from search_space.spaces import CellSpace


def test_a_missing_package_is_named_with_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "gym" else object() if name == "tianshou"
        else find(name, *rest)
    )  # fmt: skip
    study = tiny_study(tmp_path, cell={"strategy": "enas"})
    with pytest.raises(ConfigError, match=r"needs gym, not installed: pip install 'nni-bertnas\[enas\]'"):
        check_search(study)


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
    config = CellConfig(
        space=space, strategy="enas", epochs=3, candidates=2, rank_limit=8, population=2, candidate_epochs=0
    )
    metrics = []
    search = Search(
        make_space=partial(
            CellSpace, space=space, depth=2, teacher_size=WIDTH, hidden_size=8, operations=("convolution_3", "zero")
        ),
        make_evaluator=partial(
            DistillationEvaluator, train=train, dev=dev, edges=[0, 1], epochs=3, batch_size=4, report=metrics.append
        ),
        config=config,
        seed=0,
        folder=tmp_path,
    )
    found = search_enas(search)
    batches = round(160 * config.architecture_share) // 4  # an epoch; one sample each, then one update
    assert 5 <= batches <= 20
    # NNI alone would update it in every step of the next epoch's weights, too.
    decisions = len(search.space.choices())
    assert updates == [batches * decisions] * (config.epochs * 5)  # NNI goes five times over each buffer
    assert len(found) == 2
    assert all(one.inherited is not None for one in found)
    chances = [value for name, value in metrics[-1].items() if name.startswith("prob/layer_1/")]
    assert sum(chances) == pytest.approx(1, abs=1e-4)
    assert chances[0] != pytest.approx(0.5, abs=1e-6)
