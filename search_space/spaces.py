"""NNI model spaces: the only file here that knows NNI."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from nni.nas.nn.pytorch import InputChoice, LayerChoice, ModelSpace
from nni.nas.nn.pytorch.choice import ChosenInputs
from nni.nas.oneshot.pytorch.supermodule.base import BaseSuperNetModule
from torch import Tensor, nn

from .cells import Architecture, Cell, PickInputs
from .heads import ENCODINGS, HEADS
from .listing import Space
from .student import StudentConfig, StudentForSequenceClassification


class Mutables:
    """Makes every decision one of NNI's mutables."""

    def operation(self, label: str, names: Sequence[str], make: Callable[[str], nn.Module]) -> nn.Module:
        """See :class:`~search_space.cells.Chooser`."""
        return LayerChoice({name: make(name) for name in names}, label=label)

    def inputs(self, label: str, count: int, chosen: int) -> nn.Module:
        """See :class:`~search_space.cells.Chooser`."""
        choice = InputChoice(count, n_chosen=chosen, reduction="sum", label=label)
        # Where NNI makes one sample of the space, its edges that are not picked need not be built.
        return PickInputs(choice.chosen) if isinstance(choice, ChosenInputs) else choice


class CellSpace(ModelSpace):
    """All cells of one kind and depth that can stand in for a teacher block.

    A sample of this space is an architecture: label -> name of an operation, or numbers of inputs.

    Args:
        space: Kind of cell: a key of `cells.SPACES`, or a dotted name.
        depth: Searchable layers.
        teacher_size: Width of the teacher's hidden states.
        hidden_size: Width inside the cell; the teacher's width needs no maps.
        operations: Names to choose from; None takes the space's own that the width allows.
        blocks: Cells that share one architecture and no weights, one per consecutive block (AdaBERT, arXiv 2001.04246).

    Raises:
        ValueError: A name is unknown or does not suit the width.
    """

    def __init__(
        self,
        *,
        space: str,
        depth: int,
        teacher_size: int,
        hidden_size: int,
        operations: Sequence[str] | None = None,
        blocks: int = 1,
    ) -> None:
        super().__init__()
        self.space = Space.of(space, depth, hidden_size, operations)
        self.teacher_size = teacher_size
        self.cells = nn.ModuleList(
            Cell(self.space.kind(Mutables(), depth, self.space.operations, hidden_size), teacher_size, hidden_size)
            for _ in range(blocks)
        )

    @classmethod
    def of(cls, space: Space, teacher_size: int, blocks: int = 1) -> "CellSpace":
        """The model space of a listed one."""
        return cls(
            space=space.name,
            depth=space.depth,
            teacher_size=teacher_size,
            hidden_size=space.hidden_size,
            operations=space.operations,
            blocks=blocks,
        )

    def forward(self, hidden: Sequence[Tensor], mask: Tensor, second: Tensor | None = None) -> list[Tensor]:
        """One hidden state per block, each `(batch, seq, teacher_hidden)`, to as many; masks `(batch, seq)`."""
        return [cell(x, mask, second) for cell, x in zip(self.cells, hidden, strict=True)]


class StudentSpace(ModelSpace):
    """How a whole student compares two texts: its head, and whether it reads them together or apart.

    A sample is `head`, a key of `heads.HEADS`, and `encoding`, a key of `heads.ENCODINGS`.

    Args:
        config: Of the student; the two are chosen instead of its own.
        heads: To choose from.
        encodings: Likewise; a head of one side is always joint.
    """

    def __init__(self, config: StudentConfig, heads: Sequence[str], encodings: Sequence[str]) -> None:
        super().__init__()
        self.student = StudentForSequenceClassification(config)
        width = self.student.classifier.in_features
        self.student.pool = LayerChoice({one: HEADS[one](width, config.symmetric) for one in heads}, label="head")
        self.student.encoding = LayerChoice({one: ENCODINGS[one]() for one in encodings}, label="encoding")

    def forward(self, input_ids: Tensor, **inputs: Any) -> Any:
        """As the student does."""
        return self.student(input_ids, **inputs)


class EveryInput(BaseSuperNetModule):
    """All inputs at once, in a differentiable supernet; scaled to the size of the sum of those that will be kept."""

    def __init__(self, count: int, chosen: int) -> None:
        super().__init__()
        self.count, self.chosen = count, chosen

    def resample(self, memo: dict[str, Any]) -> dict[str, Any]:
        """Nothing is sampled."""
        return {}

    export = resample
    export_probs = resample

    def forward(self, tensors: list[Tensor]) -> Tensor:
        """A list of equal shapes -> one of them."""
        return torch.stack(tensors).sum(0) * (self.chosen / self.count)


def extract_cells(supernet: CellSpace, architecture: Architecture) -> list[Cell]:
    """One path of a trained one-shot supernet as cells of their own, with the weights they had there."""
    cells = [supernet.space.build(architecture, supernet.teacher_size) for _ in supernet.cells]
    for mixed, cell in zip(supernet.cells, cells, strict=True):
        _copy_path(mixed, cell, architecture)
    return cells


@torch.no_grad()
def _copy_path(source: nn.Module, target: nn.Module, architecture: Architecture) -> None:
    if isinstance(source, LayerChoice):
        choice = architecture[source.label]
        assert isinstance(choice, str)
        target.load_state_dict(source[choice].state_dict())
        return
    for name, parameter in target.named_parameters(recurse=False):
        parameter.copy_(source.get_parameter(name))
    for name, child in target.named_children():
        _copy_path(source.get_submodule(name), child, architecture)
