"""Export for OpenVINO, Intel's runtime, by way of ONNX."""

from pathlib import Path

import openvino

from nni_bertnas.data.rows import Rows
from nni_bertnas.deploy import onnx
from nni_bertnas.deploy.graph import open_model

FILE = "model.xml"


def export(source: Path, target: Path, rows: Rows) -> None:
    """See :class:`~nni_bertnas.deploy.export.Exporter`."""
    opened = open_model(source)
    onnx.write_graph(opened, target / onnx.FILE)
    model = openvino.convert_model(target / onnx.FILE)
    openvino.save_model(model, target / FILE, compress_to_fp16=False)
    (target / onnx.FILE).unlink()
    opened.write_manifest(target, FILE)
