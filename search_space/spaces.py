"""NNI model spaces: the only file here that knows NNI."""

from collections.abc import Mapping, Sequence

from nni.nas.nn.pytorch import LayerChoice, ModelSpace
from torch import Tensor, nn

from .operations import make_operation
from .student import Cell, build_cell, operations_of


class CellSpace(ModelSpace):
    """All cells of one depth that can stand in for a teacher block; every layer chooses its operation.

    A sample of this space is an architecture: `layer_<i>` -> name of the operation.

    Args:
        depth: Number of searchable layers.
        operations: Names of the operations every layer chooses from.
        teacher_size: Width of the teacher's hidden states.
        hidden_size: Width inside the cell; the teacher's width needs no maps.

    Raises:
        ValueError: A name is unknown or does not suit the width.
    """

    def __init__(self, *, depth: int, operations: Sequence[str], teacher_size: int, hidden_size: int) -> None:
        super().__init__()
        choices = [
            LayerChoice({name: make_operation(name, hidden_size) for name in operations}, label=f"layer_{number}")
            for number in range(depth)
        ]
        self.teacher_size = teacher_size
        self.hidden_size = hidden_size
        self.cell = Cell(choices, teacher_size, hidden_size)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """`(batch, seq, teacher_hidden)`, `(batch, seq)` -> `(batch, seq, teacher_hidden)`."""
        return self.cell(hidden, mask)


def extract_cell(supernet: CellSpace, architecture: Mapping[str, str]) -> Cell:
    """One path of a trained one-shot supernet as a cell of its own, with the weights it had there."""
    cell = build_cell(operations_of(architecture), supernet.teacher_size, supernet.hidden_size)
    cell.into.load_state_dict(supernet.cell.into.state_dict())
    cell.out.load_state_dict(supernet.cell.out.state_dict())
    for layer, mixed, name in zip(cell.layers, supernet.cell.layers, operations_of(architecture), strict=True):
        layer.norm.load_state_dict(mixed.norm.state_dict())
        path: nn.Module = mixed.operation[name]
        layer.operation.load_state_dict(path.state_dict())
    return cell
