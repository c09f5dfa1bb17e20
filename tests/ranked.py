"""What tests of several processes share: it is called in the others, too."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from tiny import Recorder, chain, tiny_run

from nni_bertnas import ranks
from nni_bertnas.search.one_path import drawn_path
from nni_bertnas.stages.students import StudentMaker

CLOSE = 1e-4  # of a curve's points
Epochs = list[dict[str, float]]


def own_gradients(rank: int) -> list[torch.Tensor | None]:
    """Of four parameters: dense on all ranks, dense on rank 0 alone, on none, sparse with rows of its own."""
    generator = torch.Generator().manual_seed(rank)
    rows = torch.tensor([[1, 3]]) if rank == 0 else torch.tensor([[3, 4, 3]])
    sparse = torch.sparse_coo_tensor(
        rows, torch.randn(rows.shape[1], 2, generator=generator), (6, 2), check_invariants=True
    )
    dense, alone = torch.randn(3, generator=generator), torch.randn(2, 2, generator=generator)
    return [dense, alone if rank == 0 else None, None, sparse]


def averaged_gradients() -> list[torch.Tensor | None]:
    """What the ranks make of them together."""
    with ranks.in_step():
        shapes = (3,), (2, 2), (5,), (6, 2)
        parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in shapes]
        for parameter, gradient in zip(parameters, own_gradients(ranks.rank()), strict=True):
            parameter.grad = gradient
        ranks.average_gradients(parameters)
        return [parameter.grad for parameter in parameters]


def fail() -> None:
    """What a rank does that has no memory left, say."""
    raise MemoryError("no room")


class Paths(pl.Callback):
    """Keeps, of every rank, the path of each step, the supernet's weights, and what NNI would have drawn there.

    The controller of ENAS is rank 0's: what others have of it is not asked.
    """

    everywhere = True

    def __init__(self) -> None:
        self.steps: list[dict[str, Any]] = []
        self.of_ranks: list[Any] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        self.steps.append(drawn_path(pl_module))

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        weights = torch.cat([one.detach().flatten() for one in pl_module.training_module.parameters()])
        own = [pl_module.resample() for _ in range(20)]
        self.of_ranks = ranks.gathered([(self.steps, weights, own)])


@dataclass
class Trained:
    """A student as it was trained."""

    epochs: Epochs
    weights: dict[str, torch.Tensor]
    facts: dict[str, Any]


def distil(run: Any) -> Trained:
    """A student of two cells, trained by as many processes as are active."""
    recorder, maker = Recorder(), StudentMaker(run, 0)
    width = run.train.hidden_size, run.study.student.hidden_size
    cells = [chain(name).fresh(*width) for name in ("convolution_3", "attention_4")]
    student, facts = maker.distil(cells, run.study.supernet, recorder)
    return Trained(recorder.reported, student.state_dict(), facts)


def alike(found: Epochs, expected: Epochs) -> float:
    """The greatest difference of any metric of any epoch."""
    assert len(found) == len(expected) > 1
    assert all(set(one) == set(two) for one, two in zip(found, expected, strict=True))
    greatest = max(abs(one[name] - two[name]) for one, two in zip(found, expected, strict=True) for name in one)
    losses = [[epoch.get("train_loss", np.nan) for epoch in epochs] for epochs in (expected, found)]
    print(f"losses {losses[0]} and {losses[1]}; all metrics within {greatest:.1e}")
    return greatest


def student_run(root: Any, **supernet: Any) -> Any:
    """The tiny study without dropout, which every process draws for itself; batches whose last one has a single row."""
    return tiny_run(root, student={"dropout": 0.0}, supernet={"epochs": 2, "batch_size": 43, **supernet})
