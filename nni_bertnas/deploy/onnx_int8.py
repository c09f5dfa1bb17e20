"""Export as ONNX with 8-bit weights; activations are scaled in every pass by what is in it."""

from pathlib import Path

from onnxruntime.quantization import QuantType, quantize_dynamic

from nni_bertnas.data.rows import Rows
from nni_bertnas.deploy import onnx

OPERATORS = ["MatMul", "Gemm", "Gather"]  # an 8-bit convolution scaled in every pass takes twice as long as a plain one
REDUCE_RANGE = True  # weights of 7 bits: x86 without VNNI adds two products in 16 bits, which those of 8 bits overflow


def export(source: Path, target: Path, rows: Rows) -> None:
    """See :class:`~nni_bertnas.deploy.export.Exporter`."""
    onnx.export(source, target, rows)
    file = target / onnx.FILE
    quantize_dynamic(
        file,
        file,
        weight_type=QuantType.QInt8,
        per_channel=True,
        reduce_range=REDUCE_RANGE,
        op_types_to_quantize=OPERATORS,
    )
