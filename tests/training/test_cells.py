import itertools

import numpy as np
import pytest
import torch
from planted import WIDTH, Stores, make_trainer, write_planted_store
from tiny import chain, chain_cell

from nni_bertnas.errors import CandidateError
from nni_bertnas.store.reader import FeatureStore
from nni_bertnas.training.cells import block_scores, reduced_rank_regression
from search_space.cells import Layer
from search_space.operations import make_operation


def whole(store: FeatureStore, edge: int) -> torch.Tensor:
    """The hidden states of all rows, `(tokens, hidden)`."""
    rows = np.arange(len(store))
    return torch.cat([store.hidden([edge], [row])[0][0] for row in rows])


@pytest.fixture(scope="module")
def planted_layer(tmp_path_factory: pytest.TempPathFactory) -> tuple[FeatureStore, FeatureStore]:
    """Train and dev of a block that is exactly a layer with a convolution over three positions."""
    torch.manual_seed(0)
    truth = Layer(make_operation("convolution_3", WIDTH), WIDTH)
    truth.operation.convolution.weight.data *= 4
    root = tmp_path_factory.mktemp("planted")
    return write_planted_store(root / "train", truth, 300, 1), write_planted_store(root / "dev", truth, 60, 2)


def test_block_score_against_naive_loop(planted_layer: Stores) -> None:
    dev = planted_layer[1]
    one = chain_cell("average_pool_3", teacher_size=WIDTH, hidden_size=WIDTH)
    entry, exit_ = whole(dev, 0), whole(dev, 1)
    total = 0.0
    with torch.no_grad():
        for start, stop in itertools.pairwise(dev.offsets):
            row, target = entry[start:stop][None], exit_[start:stop]
            total += float((one(row, torch.ones(row.shape[:2], dtype=torch.bool))[0] - target).abs().sum())
    expected = total / exit_.numel() / float(exit_.std())
    assert block_scores([one], dev, [0, 1]) == pytest.approx([expected], rel=1e-3)


def test_a_candidate_that_diverges_fails_alone(planted_layer: Stores) -> None:
    trainer = make_trainer(planted_layer)
    one = chain_cell("convolution_3", teacher_size=WIDTH, hidden_size=WIDTH)
    one.body.layers[0].operation.convolution.weight.data.fill_(float("nan"))
    with pytest.raises(CandidateError, match="learning_rate"):
        trainer.fit_cells([one], 0)


def test_candidates_trained_beside_each_other_are_as_if_alone(planted_layer: Stores) -> None:
    def make() -> list[torch.nn.Module]:
        torch.manual_seed(1)
        names = ("attention_4", "convolution_3", "convolution_1")
        return [chain_cell(name, teacher_size=WIDTH, hidden_size=WIDTH).train() for name in names]

    trainer = make_trainer(planted_layer, epochs=2, gradient_clip=0.1, batch_size=64, learning_rate=2e-3)
    beside, alone = make(), make()
    before = trainer.score(alone[:1])[0]
    beside[2].body.layers[0].operation.convolution.weight.data.fill_(float("nan"))
    trainer.fit_candidates(beside, 2)
    scores = [trainer.fit_cells([one.train()], 2)[0] for one in alone[:2]]
    assert [trainer.score([one])[0] for one in beside[:2]] == pytest.approx(scores, rel=1e-4)
    assert scores[0] < 0.99 * before
    with pytest.raises(CandidateError):
        trainer.score([beside[2]])


def test_mixed_precision_trains_as_well(planted_layer: Stores) -> None:
    scores = []
    for precision in ("float32", "bfloat16"):
        torch.manual_seed(1)
        one = chain_cell("convolution_3", teacher_size=WIDTH, hidden_size=WIDTH).train()
        trainer = make_trainer(planted_layer, batch_size=8, learning_rate=2e-3)
        trainer.precision = precision
        scores += trainer.fit_cells([one], 2)
    assert scores[0] != scores[1] and scores[1] == pytest.approx(scores[0], rel=0.03)


def test_start_maps_lower_the_score(planted_layer: Stores) -> None:
    trainer = make_trainer(planted_layer)
    one = chain_cell("zero", teacher_size=WIDTH, hidden_size=8)
    (before,) = trainer.score([one])
    trainer.start_maps([one])
    assert trainer.score([one])[0] < 0.8 * before


def test_reduced_rank_regression_finds_a_planted_map_and_beats_truncation() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 12, generator=generator) * torch.linspace(3, 0.1, 12)
    low_rank = torch.randn(12, 4, generator=generator) @ torch.randn(4, 12, generator=generator)
    into, into_bias, out, out_bias = reduced_rank_regression(x, x @ low_rank + 2, 4)
    torch.testing.assert_close((x @ into.T + into_bias) @ out.T + out_bias, x @ low_rank + 2, rtol=1e-3, atol=1e-2)

    y = x @ torch.randn(12, 12, generator=generator)
    into, into_bias, out, out_bias = reduced_rank_regression(x, y, 5)
    ours = ((x @ into.T + into_bias) @ out.T + out_bias - y).square().mean()
    u, s, v = torch.linalg.svd(torch.linalg.lstsq(x - x.mean(0), y - y.mean(0)).solution)
    truncated = ((x - x.mean(0)) @ (u[:, :5] * s[:5] @ v[:5]) + y.mean(0) - y).square().mean()
    assert ours < truncated


def test_candidates_trained_further_start_where_they_are_or_afresh(planted_layer: Stores) -> None:
    trainer = make_trainer(planted_layer, epochs=1)
    candidates = [chain(name).fresh(WIDTH, WIDTH) for name in ("convolution_3", "convolution_1")]
    cells = [one.trained for one in candidates]
    before = [[parameter.detach().clone() for parameter in cell.parameters()] for cell in cells]
    found = trainer.train_on(candidates, WIDTH, fresh=True)
    for cell, parameters in zip(cells, before, strict=True):
        assert all(map(torch.equal, cell.parameters(), parameters))
    assert [one.architecture for one in found] == [one.architecture for one in candidates]
    assert [trainer.score([one.trained]) for one in found] == [[one.score] for one in found]
    found = trainer.train_on(candidates, WIDTH, fresh=False)
    assert [one.cell for one in found] == cells
    cells[0].body.layers[0].operation.convolution.weight.data.fill_(float("nan"))
    assert [one.cell for one in trainer.train_on(candidates, WIDTH, fresh=False)] == cells[1:]
