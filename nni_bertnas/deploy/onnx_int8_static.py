"""Export as ONNX with 8-bit weights and activations, these scaled once and for all by rows of the task."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from nni_bertnas.data.rows import Rows
from nni_bertnas.deploy import onnx
from nni_bertnas.deploy.onnx_int8 import REDUCE_RANGE
from nni_bertnas.runtime.classifier import Classifier

# These alone: what is added at masked positions, the least number there is, would leave one step for all else.
OPERATORS = ["MatMul", "Gemm", "Conv", "Gather"]


class _Reader(CalibrationDataReader):
    def __init__(self, batches: Iterator[dict[str, np.ndarray]]) -> None:
        self.batches = batches

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.batches, None)


def export(source: Path, target: Path, rows: Rows) -> None:
    """See :class:`~nni_bertnas.deploy.export.Exporter`."""
    onnx.export(source, target, rows)
    file = target / onnx.FILE
    reader = _Reader(Classifier(target).batches(rows.texts, rows.pairs))
    quantize_static(
        file,
        file,
        reader,
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        reduce_range=REDUCE_RANGE,
        op_types_to_quantize=OPERATORS,
    )
