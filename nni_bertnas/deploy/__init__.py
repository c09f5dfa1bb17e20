"""A trained model in use: predictions, and the formats it can be exported to. One row of FORMATS each."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Format:
    """One format.

    Attributes:
        module: Of this folder, with an `export(source, target, rows)`; loaded when it is used, as it may need an extra.
        help: What comes out.
        min_agreement: The share of held-out rows on which it has to answer as the model does, where nobody says else.
        extra: Of this package, which has what it needs; empty where nothing more is.
    """

    module: str
    help: str
    min_agreement: float = 0.99
    extra: str = ""


FORMATS: Mapping[str, Format] = {
    "hf": Format(module="hugging_face", help="a folder that loads with transformers alone"),
    "onnx": Format(module="onnx", help="runs without torch", extra="export"),
    "onnx-int8": Format(
        module="onnx_int8", help="8-bit weights, activations by each pass", min_agreement=0.98, extra="export"
    ),
    "onnx-int8-static": Format(
        module="onnx_int8_static", help="8-bit, activations calibrated", min_agreement=0.98, extra="export"
    ),
    "openvino": Format(module="openvino", help="for Intel's runtime", extra="openvino"),
    "torchscript": Format(module="torchscript", help="torch without this package, C++ too"),
}
