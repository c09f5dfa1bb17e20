"""Feature stores with a known answer: blocks that are exactly one cell; and searches of them."""

import importlib.util
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nni.nas.strategy import DARTS

from nni_bertnas.config import CellSettings
from nni_bertnas.search.differentiable import _sum_all_edges
from nni_bertnas.search.search import Costs, Group, Search, mean_score
from nni_bertnas.search.strategies import STRATEGIES
from nni_bertnas.search.watch import architecture_weights
from nni_bertnas.store.layout import Index
from nni_bertnas.store.reader import FeatureStore
from nni_bertnas.student.cost import operation_costs
from nni_bertnas.training.cells import CellTrainer
from search_space.cells import Architecture, build_body
from search_space.listing import Space
from search_space.spaces import CellSpace

WIDTH = 16
CHOICES = ("max_pool_3", "average_pool_3", "convolution_3", "zero")
Stores = tuple[FeatureStore, FeatureStore]
HAS_TIANSHOU = importlib.util.find_spec("tianshou") is not None
RUNNABLE = [
    pytest.param(name, marks=pytest.mark.skipif(name == "enas" and not HAS_TIANSHOU, reason="needs tianshou"))
    for name in STRATEGIES
]


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
    values = (entry, exit_)
    index = Index(
        edges=[0, 1], dtype="float16", hidden_size=WIDTH, num_labels=2, num_rows=num_rows,
        num_hidden_tokens=int(offsets[-1]), num_tokens=int(offsets[-1]), num_shards=1, pad_token_id=0,
        variance={str(edge): float(one.var()) for edge, one in enumerate(values)}, error={},
    )  # fmt: skip
    for edge, one in enumerate(values):
        (name,) = index.of_edge(edge)
        (folder / f"{name}.bin").write_bytes(one.astype(np.float16).tobytes())
    arrays = {
        "offsets": offsets,
        "token_types": np.zeros(offsets[-1], np.int8),
        "stored": np.ones(num_rows, bool),
    }
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    index.write(folder)
    return FeatureStore(folder)


def plant(root: Path, space: str, depth: int, architecture: Architecture, num_rows: int = 160) -> Stores:
    """Train and dev of a block that is exactly a cell, its convolutions made strong."""
    torch.manual_seed(0)
    truth = build_body(space, architecture, depth, WIDTH)
    for module in truth.modules():
        if isinstance(module, torch.nn.Conv1d):
            module.weight.data *= 4
    return write_planted_store(root / "train", truth, num_rows, 1), write_planted_store(root / "dev", truth, 60, 2)


def make_trainer(stores: Stores, report: Any = lambda metrics: None, **settings: Any) -> CellTrainer:
    """What trains cells on a planted block; settings are those of the section `cell`."""
    return CellTrainer(train=stores[0], dev=stores[1], edges=[0, 1], settings=CellSettings(**settings), report=report)


def make_search(
    stores: Stores, folder: Path, strategy: str, operations: Sequence[str] = CHOICES, *, space: str = "sequential",
    depth: int = 1, hidden_size: int = WIDTH, report: Any = lambda metrics: None, options: dict[str, Any] | None = None,
    cost: str | None = None, **cell: Any,
) -> Search:  # fmt: skip
    """A search of a planted block; `cell` are fields of the section, `options` of the strategy."""
    row = STRATEGIES[strategy]
    known = row.options.__dataclass_fields__
    given = {"samples": 6, "architecture_learning_rate": 0.1}
    settings = CellSettings(
        **{"epochs": 4, "candidates": 2, "learning_rate": 1e-2, "max_rows": None, **cell, "cost": cost}
    )
    listed = Space.of(space, depth, hidden_size, operations)
    torch.manual_seed(0)
    costs = None
    if cost is not None:
        of_operations = operation_costs(listed.operation_names, hidden_size, cost, 7)
        costs = Costs(kind=cost, of_operations=of_operations, most=settings.max_cost)
    return Search(
        space=listed,
        trainer=CellTrainer(train=stores[0], dev=stores[1], edges=[0, 1], settings=settings, report=report),
        options=row.read_options(
            {**{name: value for name, value in given.items() if name in known}, **(options or {})}
        ),
        candidates=settings.candidates,
        seed=0,
        folder=folder,
        costs=costs,
    )


def run_search(search: Search, strategy: str) -> list[Group]:
    """What a search finds, best first."""
    return sorted(STRATEGIES[strategy].load()(search).groups, key=mean_score)


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


def mixed_supernet(space: str = "sequential", depth: int = 2, blocks: int = 1) -> CellSpace:
    """With architecture weights that are far from even."""
    torch.manual_seed(0)
    own = CellSpace(space=space, depth=depth, teacher_size=8, hidden_size=8, operations=CHOICES, blocks=blocks)
    mixed = DARTS(mutation_hooks=[_sum_all_edges]).mutate_model(own)
    for _, alpha in architecture_weights(mixed).values():
        alpha.data.normal_()
    return mixed
