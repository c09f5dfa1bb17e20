"""A module's graph in ONNX."""

import copy
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

OPSET = 20
OUTPUT = "logits"


class _Gru(nn.Module):
    """A GRU of one layer and direction as ONNX's own operator; torch.export would write a step per position."""

    def __init__(self, gru: nn.GRU) -> None:
        super().__init__()
        self.hidden_size = gru.hidden_size
        weight, recurrent, *biases = (_gates(values) for values in gru.parameters())
        self.weight, self.recurrent = nn.Parameter(weight[None]), nn.Parameter(recurrent[None])
        self.bias = nn.Parameter(torch.cat(biases)[None])

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        """`(batch, seq, size)` -> `(batch, seq, hidden)`."""
        batch, seq, _ = x.shape
        found = torch.onnx.ops.symbolic(
            "GRU",
            (x.transpose(0, 1), self.weight, self.recurrent, self.bias),
            attrs={"hidden_size": self.hidden_size, "linear_before_reset": 1},
            dtype=x.dtype,
            shape=(seq, 1, batch, self.hidden_size),
            version=OPSET,
        )
        return found.squeeze(1).transpose(0, 1), None


def _gates(values: Tensor) -> Tensor:
    """Gates in ONNX's order, update before reset."""
    reset, update, new = values.detach().chunk(3)
    return torch.cat([update, reset, new])


def _with_own_grus(module: nn.Module) -> nn.Module:
    for name, child in module.named_children():
        setattr(module, name, _Gru(child) if isinstance(child, nn.GRU) else _with_own_grus(child))
    return module


def write_graph(module: nn.Module, inputs: Mapping[str, Tensor], free: Mapping[int, Any], file: Path) -> None:
    """Write a module's graph and weights; its output is called OUTPUT.

    Args:
        module: On the CPU, in eval mode; its first output is written.
        inputs: An example of each, by the names that its forward pass has for them.
        free: Dimensions of every input that may be of any size, torch.export's `Dim` by their number.
        file: Takes it.
    """
    graph = Positional(_with_own_grus(copy.deepcopy(module)), tuple(inputs)).eval()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it tells of torchvision, which nobody needs here
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what will change within torch
        shapes = ((dict(free),) * len(inputs),)
        program = torch.export.export(graph, tuple(inputs.values()), dynamic_shapes=shapes, strict=False)
        found = torch.onnx.export(
            program,
            dynamo=True,
            input_names=list(inputs),
            output_names=[OUTPUT],
            opset_version=OPSET,
            verbose=False,
        )
    assert found is not None
    found.save(str(file))


class Positional(nn.Module):
    """A module whose inputs come by position, as graphs take them.

    Args:
        module: In eval mode.
        names: Of the inputs.
    """

    def __init__(self, module: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.module, self.names = module, names

    def forward(self, *inputs: Tensor) -> Tensor:
        """The module's output, or the first of several; of a classifier its logits."""
        found = self.module(**dict(zip(self.names, inputs, strict=True)))
        first: Tensor = found if isinstance(found, Tensor) else found[0]
        return first
