import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import chain_cell, tiny_study

from nni_bertnas.artifacts import RunDirectory, read_result
from nni_bertnas.config import Study
from nni_bertnas.errors import CandidateError, ConfigError
from nni_bertnas.search.evaluator import DistillationEvaluator, block_scores
from nni_bertnas.search.strategies import most_probable
from nni_bertnas.stages import cell
from nni_bertnas.store.reader import FeatureStore, ensure_features, open_features, study_edges
from nni_bertnas.student.candidates import load_cell
from nni_bertnas.training.teacher import ensure_teacher
from search_space.cells import Layer
from search_space.operations import make_operation
from search_space.spaces import CellSpace

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
        (folder / f"hidden_{edge}.bin").write_bytes(values.astype(np.float16).tobytes())
    np.save(folder / "stored.npy", np.ones(num_rows, bool))
    np.save(folder / "offsets.npy", offsets)
    np.save(folder / "token_types.npy", np.zeros(offsets[-1], np.int8))
    index = {
        "edges": [0, 1],
        "hidden_size": WIDTH,
        "dtype": "float16",
        "num_hidden_tokens": int(offsets[-1]),
        "variance": {"0": float(entry.var()), "1": float(exit_.var())},
    }
    (folder / "index.json").write_text(json.dumps(index))
    return FeatureStore(folder)


def whole(store: FeatureStore, edge: int) -> torch.Tensor:
    """The hidden states of all rows, `(tokens, hidden)`."""
    rows = np.arange(len(store))
    return torch.cat([store.hidden([edge], [row])[0][0] for row in rows])


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[FeatureStore, FeatureStore]:
    """Train and dev of a block that is exactly a layer with a convolution over three positions."""
    torch.manual_seed(0)
    truth = Layer(make_operation("convolution_3", WIDTH), WIDTH)
    truth.operation.convolution.weight.data *= 4
    root = tmp_path_factory.mktemp("planted")
    return write_planted_store(root / "train", truth, 300, 1), write_planted_store(root / "dev", truth, 60, 2)


def test_block_score_against_naive_loop(planted: tuple) -> None:
    dev = planted[1]
    one = chain_cell("average_pool_3", teacher_size=WIDTH, hidden_size=WIDTH)
    entry, exit_ = whole(dev, 0), whole(dev, 1)
    total = 0.0
    with torch.no_grad():
        for start, stop in itertools.pairwise(dev.offsets):
            row, target = entry[start:stop][None], exit_[start:stop]
            total += float((one(row, torch.ones(row.shape[:2], dtype=torch.bool))[0] - target).abs().sum())
    expected = total / exit_.numel() / float(exit_.std())
    assert block_scores([one], dev, [0, 1]) == pytest.approx([expected], rel=1e-3)


def test_most_probable_is_exact() -> None:
    space = CellSpace(
        space="sequential", depth=3, teacher_size=8, hidden_size=8, operations=("identity", "zero", "max_pool_3")
    )
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


def test_a_candidate_that_diverges_fails_alone(planted: tuple) -> None:
    evaluator = DistillationEvaluator(train=planted[0], dev=planted[1], edges=[0, 1], epochs=1)
    one = chain_cell("convolution_3", teacher_size=WIDTH, hidden_size=WIDTH)
    one.body.layers[0].operation.convolution.weight.data.fill_(float("nan"))
    with pytest.raises(CandidateError, match="learning_rate"):
        evaluator.fit_cells([one], 0)


def test_candidates_trained_beside_each_other_are_as_if_alone(planted: tuple) -> None:
    def make() -> list[torch.nn.Module]:
        torch.manual_seed(1)
        names = ("attention_4", "convolution_3", "convolution_1")
        return [chain_cell(name, teacher_size=WIDTH, hidden_size=WIDTH).train() for name in names]

    evaluator = DistillationEvaluator(train=planted[0], dev=planted[1], edges=[0, 1], epochs=2, gradient_clip=0.1)
    beside, alone = make(), make()
    before = evaluator.score(alone[:1])[0]
    beside[2].body.layers[0].operation.convolution.weight.data.fill_(float("nan"))
    evaluator.fit_candidates(beside, 2)
    scores = [evaluator.fit_cells([one.train()], 2)[0] for one in alone[:2]]
    assert [evaluator.score([one])[0] for one in beside[:2]] == pytest.approx(scores, rel=1e-4)
    assert scores[0] < 0.99 * before
    with pytest.raises(CandidateError):
        evaluator.score([beside[2]])


def test_mixed_precision_trains_as_well(planted: tuple) -> None:
    scores = []
    for precision in ("float32", "bfloat16"):
        torch.manual_seed(1)
        one = chain_cell("convolution_3", teacher_size=WIDTH, hidden_size=WIDTH).train()
        evaluator = DistillationEvaluator(
            train=planted[0], dev=planted[1], edges=[0, 1], epochs=2, batch_size=8, precision=precision
        )
        scores += evaluator.fit_cells([one], 2)
    assert scores[0] != scores[1] and scores[1] == pytest.approx(scores[0], rel=0.03)


def test_start_maps_lower_the_score(planted: tuple) -> None:
    evaluator = DistillationEvaluator(train=planted[0], dev=planted[1], edges=[0, 1], epochs=1)
    one = chain_cell("zero", teacher_size=WIDTH, hidden_size=8)
    (before,) = evaluator.score([one])
    evaluator.start_maps([one])
    assert evaluator.score([one])[0] < 0.8 * before


def small(root: Path, **settings: object) -> Study:
    return tiny_study(root, cell={"operations": ["convolution_3", "max_pool_3", "zero"], "epochs": 1, **settings})


def test_shared_cells_have_one_architecture_and_their_own_weights(tmp_path: Path) -> None:
    study = small(tmp_path, shared=True, strategy="random_one_shot")
    assert cell.units(study, 2) == [{"block": 0, "depth": 1}]
    cell.run(study, 0, 1)
    results = [read_result(RunDirectory(study).cell(block, 1)) for block in (0, 1)]
    first, second = ([one["architecture"] for one in result["candidates"]] for result in results)
    assert sorted(map(str, first)) == sorted(map(str, second)) and len(first) == 2
    edges = study_edges(study)
    for block, result in enumerate(results):
        for one in result["candidates"]:
            loaded = load_cell(RunDirectory(study).cell(block, 1), one, 32, 16)
            dev = open_features(study, "dev")
            assert block_scores([loaded], dev, edges[block : block + 2]) == pytest.approx([one["score"]], rel=1e-4)
    assert cell.find(study, 1, 1) is not None
    with pytest.raises(ConfigError, match="block must be 0 where"):
        cell.run(study, 1, 1)


def test_every_path_that_was_ranked_is_kept_beside_the_result(tmp_path: Path) -> None:
    study = small(tmp_path, strategy="random_one_shot")
    result = cell.run(study, 0, 1)
    paths = json.loads((RunDirectory(study).cell(0, 1) / cell.PATHS).read_text())
    assert sorted(one["layer_0"] for one, _ in paths) == ["convolution_3", "max_pool_3", "zero"]
    assert [score for _, score in paths] == sorted(score for _, score in paths)
    best = {one["architecture"]["layer_0"]: one["inherited"] for one in result["candidates"]}
    assert best == {one["layer_0"]: score for one, score in paths[:2]}


def test_a_collapsed_search_is_called_so(tmp_path: Path) -> None:
    study = tiny_study(tmp_path, cell={"operations": ["max_pool_3", "zero"], "strategy": "grid", "epochs": 1})
    assert "collapsed to parameter-free operations" in cell.run(study, 0, 1)["collapsed"]


def test_a_search_that_cannot_be_is_refused_before_the_teacher(tmp_path: Path) -> None:
    study = tiny_study(tmp_path, cell={"space": "adabert", "strategy": "grid"})
    with pytest.raises(ConfigError, match="grid trains every architecture"):
        cell.run(study, 0, 1)
    assert not RunDirectory(study).teacher.exists()
    study = small(
        tmp_path, strategy="random", cost="num_params", max_cost=0.5, operations=["convolution_3", "kim_convolution"]
    )
    ensure_teacher(study)
    ensure_features(study)
    with pytest.raises(ConfigError, match="must be at least"):
        cell.run(study, 0, 1)
