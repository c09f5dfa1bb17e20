"""Every strategy on every space; by default every strategy on one space, and one strategy of each kind on all."""

from pathlib import Path
from typing import Any

import pytest
from planted import RUNNABLE, WIDTH, Stores, make_search, plant, run_search
from tiny import tiny_study

from nni_bertnas.errors import ConfigError
from nni_bertnas.search.strategies import STRATEGIES, OneShotOptions, check_search
from nni_bertnas.training.cells import block_scores
from search_space.cells import SPACES, spell

pytestmark = pytest.mark.slow
QUICK = ("darts", "random", "grid")


def pair(space: str, strategy: Any) -> Any:
    """Both as a test's parameters, long where neither is quick."""
    long = space != "layers" and strategy.values[0] not in QUICK
    return pytest.param(space, *strategy.values, marks=[*strategy.marks, *[pytest.mark.long] * long])


@pytest.fixture(scope="module")
def convolution(tmp_path_factory: pytest.TempPathFactory) -> Stores:
    return plant(tmp_path_factory.mktemp("one"), "sequential", 1, {"layer_0": "convolution_3"})


@pytest.mark.parametrize(("space", "strategy"), [pair(space, one) for space in SPACES for one in RUNNABLE])
def test_every_strategy_searches_every_space(convolution: Stores, tmp_path: Path, space: str, strategy: str) -> None:
    operations, depth = ("max_pool_3", "convolution_3"), 2 - (space == "adabert")
    fields = {"space": space, "strategy": strategy, "operations": list(operations), "depths": [2]}
    cell = tiny_study(tmp_path, cell=fields).cell
    if space == "adabert" and strategy in ("grid", "enas"):
        with pytest.raises(ConfigError, match="grid trains every" if strategy == "grid" else "enas cannot search"):
            check_search(cell, 8)
        return
    check_search(cell, 8)
    row = STRATEGIES[strategy]
    given = {"samples": 3, "population": 2, "rank_limit": 6, "candidate_epochs": 1}
    search = make_search(
        convolution, tmp_path, strategy, operations, space=space, depth=depth, hidden_size=8, epochs=1, batch_size=48,
        max_rows=48, options={name: value for name, value in given.items() if hasattr(row.options(), name)},
    )  # fmt: skip
    found = [group[0] for group in run_search(search, strategy)]
    expected = 2 if issubclass(row.options, OneShotOptions) else {"grid": search.space.count()}.get(strategy, 3)
    names = {spell(one.architecture) for one in found}
    assert len(names) == len(found) == expected
    for one in found[:3]:
        assert (one.space, one.depth) == (space, depth)
        assert search.space.canonical(one.architecture) == one.architecture
        plain = search.space.build(one.architecture, WIDTH)
        plain.load_state_dict(one.trained.state_dict())
        assert block_scores([plain], convolution[1], [0, 1]) == pytest.approx([one.score], rel=1e-4)
        assert (one.inherited is not None) == issubclass(row.options, OneShotOptions)
