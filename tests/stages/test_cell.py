import json
from pathlib import Path

import pytest
from tiny import tiny_run

from nni_bertnas.errors import ConfigError
from nni_bertnas.stages.cell import PATHS
from nni_bertnas.stages.cells import read_candidates
from nni_bertnas.stages.run import Run
from nni_bertnas.stages.stage import ensure, find, load
from nni_bertnas.training.cells import block_scores

UNIT = {"block": 0, "depth": 1}
pytestmark = pytest.mark.slow


def small(root: Path, **settings: object) -> Run:
    return tiny_run(root, cell={"operations": ["convolution_3", "max_pool_3", "zero"], "epochs": 1, **settings})


def test_shared_cells_have_one_architecture_and_their_own_weights(tmp_path: Path) -> None:
    run = small(tmp_path, shared=True, strategy="random_one_shot")
    units = [{"block": block, "depth": 1} for block in (0, 1)]
    assert load("cell").units(run) == units[:1]
    ensure(run, "cell", units[0])
    results = [run.read("cell", unit) for unit in units]
    first, second = ([one["architecture"] for one in result["candidates"]] for result in results)
    assert sorted(map(str, first)) == sorted(map(str, second)) and len(first) == 2
    for block, result in enumerate(results):
        for one in read_candidates(result):
            loaded = one.load(run.folder("cell", units[block]), 32, 16).trained
            edges = run.edges[block : block + 2]
            assert block_scores([loaded], run.dev, edges) == pytest.approx([one.score], rel=1e-4)
    assert find(run, "cell", units[1]) is not None
    with pytest.raises(ConfigError, match="block must be 0 where"):
        ensure(run, "cell", units[1])


def test_every_path_that_was_ranked_is_kept_beside_the_result(tmp_path: Path) -> None:
    run = small(tmp_path, strategy="random_one_shot")
    result = ensure(run, "cell", UNIT)
    paths = json.loads((run.folder("cell", UNIT) / PATHS).read_text())
    assert sorted(one["layer_0"] for one, _ in paths) == ["convolution_3", "max_pool_3", "zero"]
    assert [score for _, score in paths] == sorted(score for _, score in paths)
    best = {one["architecture"]["layer_0"]: one["inherited"] for one in result["candidates"]}
    assert best == {one["layer_0"]: score for one, score in paths[:2]}


def test_a_collapsed_search_is_called_so(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, cell={"operations": ["max_pool_3", "zero"], "strategy": "grid", "epochs": 1})
    assert "collapsed to parameter-free operations" in ensure(run, "cell", UNIT)["collapsed"]


def test_a_search_that_cannot_be_is_refused_before_the_teacher(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, cell={"space": "adabert", "strategy": "grid"})
    with pytest.raises(ConfigError, match="grid trains every architecture"):
        ensure(run, "cell", UNIT)
    with pytest.raises(ConfigError, match="0 to 1, got 7"):
        ensure(small(tmp_path), "cell", {"block": 7, "depth": 1})
    with pytest.raises(ConfigError, match="depth must be one of"):
        ensure(small(tmp_path), "cell", {"block": 0, "depth": 3})
    assert not run.folder("teacher").exists()
    settings = {"cost": "num_params", "max_cost": 0.5, "operations": ["convolution_3", "kim_convolution"]}
    with pytest.raises(ConfigError, match="must be at least"):
        ensure(small(tmp_path, strategy="random", **settings), "cell", UNIT)
