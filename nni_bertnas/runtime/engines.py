"""What runs an exported model: one row of ENGINES per ending of its file."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .errors import ConfigError

# From 1.29 on, onnxruntime reports its use to its makers from the moment it is imported, unless told not to.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

Inputs = Mapping[str, np.ndarray]  # by name, `(batch, seq)`
Engine = Callable[[Inputs], np.ndarray]  # -> logits, `(batch, num_labels)`


def _onnx(path: Path, threads: int) -> Engine:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(["logits"], dict(inputs))[0]


def _openvino(path: Path, threads: int) -> Engine:
    import openvino

    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    request = openvino.Core().compile_model(path, "CPU", settings).create_infer_request()
    return lambda inputs: np.array(request.infer(dict(inputs))["logits"])


def _torchscript(path: Path, threads: int) -> Engine:
    import torch

    model = torch.jit.load(str(path), map_location="cpu")

    def run(inputs: Inputs) -> np.ndarray:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            with torch.inference_mode():
                logits: np.ndarray = model(*(torch.from_numpy(value) for value in inputs.values())).numpy()
                return logits
        finally:
            torch.set_num_threads(before)  # it is the whole process's

    return run


@dataclass(frozen=True)
class Kind:
    """One kind of file.

    Attributes:
        name: Of what runs it.
        make: Loads it, with a number of threads.
        package: What has to be installed.
    """

    name: str
    make: Callable[[Path, int], Engine]
    package: str


ENGINES: Mapping[str, Kind] = {
    ".onnx": Kind("ONNX Runtime", _onnx, "onnxruntime"),
    ".xml": Kind("OpenVINO", _openvino, "openvino"),
    ".ts": Kind("TorchScript", _torchscript, "torch"),
}


def open_engine(path: Path, threads: int) -> Engine:
    """Load a model's file.

    Args:
        path: With an ending out of ENGINES.
        threads: Of every pass.

    Raises:
        ConfigError: It cannot be loaded, or what runs it is not installed.
    """
    kind = ENGINES[path.suffix]
    try:
        return kind.make(path, threads)
    except ImportError as error:
        raise ConfigError(f"{path.name} needs {error.name}; install it with: pip install {kind.package}") from error
    except Exception as error:  # each library has its own
        raise ConfigError(f"{path} cannot be loaded ({_first_line(error)}); export the model once more") from error


def _first_line(error: Any) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
