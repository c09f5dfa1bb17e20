"""Export as TorchScript, which torch loads without this package, from C++ too."""

import warnings
from pathlib import Path

import torch

from nni_bertnas.data.rows import Rows
from nni_bertnas.deploy.graph import open_model

FILE = "model.ts"


def export(source: Path, target: Path, rows: Rows) -> None:
    """See :class:`~nni_bertnas.deploy.export.Exporter`."""
    opened = open_model(source)
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of lengths read in Python, which are the same for all rows
        traced = torch.jit.trace(opened.graph, tuple(opened.example.values()), check_trace=False)
    torch.jit.save(torch.jit.freeze(traced), str(target / FILE))
    opened.write_manifest(target, FILE)
