"""Export as ONNX, which runs without torch."""

from pathlib import Path

import torch

from nni_bertnas.data.rows import Rows
from nni_bertnas.deploy.container import write_container
from nni_bertnas.deploy.graph import Opened, open_model
from nni_bertnas.student import onnx as graphs

FILE = "model.onnx"


def export(source: Path, target: Path, rows: Rows) -> None:
    """See :class:`~nni_bertnas.deploy.export.Exporter`; batch and length are free, inputs are those of the model."""
    write_container(target)
    opened = open_model(source)
    write_graph(opened, target / FILE)
    opened.write_manifest(target, FILE, graphs.OPSET)


def write_graph(opened: Opened, file: Path) -> None:
    """Write a model's graph and weights.

    Args:
        opened: The model.
        file: Takes it.
    """
    free = {0: torch.export.Dim("batch"), 1: torch.export.Dim("seq", max=opened.max_length)}
    graphs.write_graph(opened.model, opened.example, free, file)
