"""Export as ONNX, which runs without torch."""

import copy
import logging
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from nni_bertnas.data.rows import Rows
from nni_bertnas.deploy.container import write_container
from nni_bertnas.deploy.graph import Opened, open_model

FILE = "model.onnx"
OPSET = 20


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


def export(source: Path, target: Path, rows: Rows) -> None:
    """See :class:`~nni_bertnas.deploy.export.Exporter`; batch and length are free, inputs are those of the model."""
    write_container(target)
    opened = open_model(source)
    write_graph(opened, target / FILE)
    opened.write_manifest(target, FILE, OPSET)


def write_graph(opened: Opened, file: Path) -> None:
    """Write a model's graph and weights.

    Args:
        opened: The model.
        file: Takes it.
    """
    free = {0: torch.export.Dim("batch"), 1: torch.export.Dim("seq", max=opened.max_length)}
    graph = _with_own_grus(copy.deepcopy(opened.graph))
    example = tuple(opened.example.values())
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it tells of torchvision, which nobody needs here
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what will change within torch
        program = torch.export.export(graph, example, dynamic_shapes=((free,) * len(example),), strict=False)
        found = torch.onnx.export(
            program,
            dynamo=True,
            input_names=list(opened.example),
            output_names=["logits"],
            opset_version=OPSET,
            verbose=False,
        )
    assert found is not None
    found.save(str(file))
