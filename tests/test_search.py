import itertools
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from nni_bertnas.config import CellConfig
from nni_bertnas.errors import CandidateError
from nni_bertnas.evaluator import DistillationEvaluator, block_score
from nni_bertnas.features import FeatureStore
from nni_bertnas.strategies import STRATEGIES, Search, most_probable, search_darts
from search_space.operations import OPERATION_SETS
from search_space.spaces import CellSpace, extract_cell
from search_space.student import Layer, build_cell, make_operation

WIDTH = 16


def write_planted_store(folder: Path, truth: torch.nn.Module, num_rows: int, seed: int) -> FeatureStore:
    """Random hidden states at edge 0, and what `truth` makes of them at edge 1."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(3, 12, num_rows)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    entry = generator.normal(size=(offsets[-1], WIDTH)).astype(np.float32)
    exit_ = np.zeros_like(entry)
    with torch.no_grad():
        for start, stop in itertools.pairwise(offsets):
            row = torch.from_numpy(entry[start:stop])[None]
            exit_[start:stop] = truth(row, torch.ones(row.shape[:2], dtype=torch.bool))[0].numpy()
    folder.mkdir(parents=True)
    for edge, values in enumerate((entry, exit_)):
        np.save(folder / f"hidden_{edge}.npy", values.astype(np.float16))
    np.save(folder / "offsets.npy", offsets)
    index = {
        "edges": [0, 1],
        "hidden_size": WIDTH,
        "num_tokens": int(offsets[-1]),
        "variance": {"0": float(entry.var()), "1": float(exit_.var())},
    }
    (folder / "index.json").write_text(json.dumps(index))
    return FeatureStore(folder)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[FeatureStore, FeatureStore]:
    """Train and dev of a block that is exactly a layer with a convolution over three positions."""
    torch.manual_seed(0)
    truth = Layer(make_operation("convolution_3", WIDTH), WIDTH)
    truth.operation.convolution.weight.data *= 4
    root = tmp_path_factory.mktemp("planted")
    return write_planted_store(root / "train", truth, 300, 1), write_planted_store(root / "dev", truth, 60, 2)


def make_search(
    planted: tuple[FeatureStore, FeatureStore], folder: Path, operations: tuple[str, ...], **config: object
) -> Search:
    settings = CellConfig(**{"epochs": 6, "architecture_learning_rate": 0.1, "batch_size": 16, **config})
    torch.manual_seed(1)
    return Search(
        space=CellSpace(depth=1, operations=operations, teacher_size=WIDTH, hidden_size=WIDTH),
        make_evaluator=partial(
            DistillationEvaluator, train=planted[0], dev=planted[1], entry=0, exit_=1, epochs=settings.epochs,
            batch_size=settings.batch_size, learning_rate=5e-3,
        ),
        config=settings,
        seed=0,
        folder=folder,
    )  # fmt: skip


CHOICES = ("max_pool_3", "average_pool_3", "convolution_3", "zero")


def test_darts_moves_its_weights_to_the_planted_operation(planted: tuple, tmp_path: Path) -> None:
    reports: list[dict] = []
    search = make_search(planted, tmp_path, CHOICES, candidates=4)
    search = Search(**{**vars(search), "make_evaluator": partial(search.make_evaluator, report=reports.append)})
    found = search_darts(search)
    assert found[0].architecture == {"layer_0": "convolution_3"}
    searched = [report for report in reports if "architecture_loss" in report]
    shares = [report["probability/layer_0/convolution_3"] for report in searched]
    assert len(searched) == 6 and shares[0] > 0.25 and shares[-1] > 0.5 and shares == sorted(shares)
    assert searched[-1]["architecture_entropy"] < searched[0]["architecture_entropy"] < np.log(4)
    assert searched[-1]["train_loss"] < searched[0]["train_loss"]
    scores = {one.architecture["layer_0"]: one.score for one in found}
    assert scores["convolution_3"] < 0.5 * max(scores.values())


def test_random_tries_different_architectures_and_keeps_their_weights(planted: tuple, tmp_path: Path) -> None:
    search = make_search(planted, tmp_path, CHOICES, samples=3, strategy="random", epochs=2)
    found = STRATEGIES["random"](search)
    names = [one.architecture["layer_0"] for one in found]
    assert len(set(names)) == 3
    for one in found:
        plain = build_cell(list(one.architecture.values()), WIDTH, WIDTH)
        plain.load_state_dict(one.cell.state_dict())
        assert block_score(plain, planted[1], 0, 1) == pytest.approx(one.score, rel=1e-5)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("operation_set", OPERATION_SETS)
def test_every_strategy_runs_on_every_set(planted: tuple, tmp_path: Path, strategy: str, operation_set: str) -> None:
    search = make_search(planted, tmp_path, OPERATION_SETS[operation_set], samples=2, candidates=2, epochs=1)
    found = STRATEGIES[strategy](search)
    assert len(found) == 2 and all(np.isfinite(one.score) for one in found)


def test_block_score_against_naive_loop(planted: tuple) -> None:
    dev = planted[1]
    cell = build_cell(["average_pool_3"], WIDTH, WIDTH)
    total = 0.0
    with torch.no_grad():
        for start, stop in itertools.pairwise(dev.offsets):
            row = torch.from_numpy(dev.hidden(0)[start:stop].astype(np.float32))[None]
            target = torch.from_numpy(dev.hidden(1)[start:stop].astype(np.float32))
            total += float((cell(row, torch.ones(row.shape[:2], dtype=torch.bool))[0] - target).abs().sum())
    expected = total / dev.hidden(1).size / dev.hidden(1).astype(np.float64).std()
    assert block_score(cell, dev, 0, 1) == pytest.approx(expected, rel=1e-3)


def test_an_extracted_cell_is_its_path_of_the_supernet(planted: tuple, tmp_path: Path) -> None:
    from nni.nas.strategy import DARTS

    torch.manual_seed(0)
    space = CellSpace(depth=2, operations=("convolution_3", "attention_4"), teacher_size=WIDTH, hidden_size=8)
    supernet = DARTS().mutate_model(space)
    architecture = {"layer_0": "attention_4", "layer_1": "convolution_3"}
    for layer, name in zip(supernet.cell.layers, architecture.values(), strict=True):
        layer.operation._arch_alpha.data = torch.tensor([100.0 * (n == name) for n in layer.operation.names])
    x, mask = torch.randn(2, 5, WIDTH), torch.ones(2, 5, dtype=torch.bool)
    torch.testing.assert_close(extract_cell(supernet, architecture)(x, mask), supernet(x, mask))


def test_most_probable_is_exact() -> None:
    probabilities = {
        "layer_0": {"a": 0.5, "b": 0.4, "c": 0.1},
        "layer_1": {"a": 0.6, "b": 0.3, "c": 0.1},
        "layer_2": {"a": 0.34, "b": 0.33, "c": 0.33},
    }
    every = {
        (x, y, z): probabilities["layer_0"][x] * probabilities["layer_1"][y] * probabilities["layer_2"][z]
        for x in "abc" for y in "abc" for z in "abc"
    }  # fmt: skip
    expected = sorted(every, key=lambda key: -every[key])[:7]
    found = [tuple(one.values()) for one in most_probable(probabilities, 7)]
    assert [every[key] for key in found] == pytest.approx([every[key] for key in expected])


def test_a_candidate_that_diverges_fails_alone(planted: tuple) -> None:
    evaluator = DistillationEvaluator(train=planted[0], dev=planted[1], entry=0, exit_=1, epochs=1)
    cell = build_cell(["convolution_3"], WIDTH, WIDTH)
    cell.layers[0].operation.convolution.weight.data.fill_(float("nan"))
    with pytest.raises(CandidateError, match="learning_rate"):
        evaluator.fit_cell(cell, 0)


def test_start_maps_lower_the_score(planted: tuple) -> None:
    evaluator = DistillationEvaluator(train=planted[0], dev=planted[1], entry=0, exit_=1, epochs=1)
    cell = build_cell(["zero"], WIDTH, 8)
    before = evaluator.fit_cell(cell, 0)
    evaluator.start_maps(cell)
    assert evaluator.fit_cell(cell, 0) < 0.8 * before
