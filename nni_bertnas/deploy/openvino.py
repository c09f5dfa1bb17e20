"""Export for OpenVINO, Intel's runtime, by way of ONNX."""

from dataclasses import replace
from pathlib import Path

import openvino

from nni_bertnas.data.rows import Rows
from nni_bertnas.deploy import onnx
from nni_bertnas.runtime.manifest import read_manifest

FILE = "model.xml"


def export(source: Path, target: Path, rows: Rows) -> None:
    """See :class:`~nni_bertnas.deploy.export.Exporter`."""
    onnx.export(source, target, rows)
    model = openvino.convert_model(target / onnx.FILE)
    openvino.save_model(model, target / FILE, compress_to_fp16=False)
    (target / onnx.FILE).unlink()
    replace(read_manifest(target), model=FILE, opset=None).write(target)
