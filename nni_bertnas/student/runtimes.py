"""In what a model's passes are timed: a row of RUNTIMES each."""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch

from nni_bertnas.errors import ConfigError
from nni_bertnas.student.cost import Call, Passes


def _torch(passes: Passes, threads: int) -> Call:
    return passes  # whose threads are those of the process


def _onnx(passes: Passes, threads: int) -> Call:
    from nni_bertnas.runtime.engines import open_engine
    from nni_bertnas.student.onnx import write_graph

    example = next(iter(passes.inputs.values()))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        most = max(value.shape[1] for one in passes.inputs.values() for value in one.values())
        free = {1: torch.export.Dim("seq", max=most)}
        write_graph(passes.module.eval(), example, free, file)
        engine = open_engine(file, threads)
    arrays = {n: {name: value.numpy() for name, value in one.items()} for n, one in passes.inputs.items()}
    return lambda length: engine(arrays[length])


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """One runtime.

    Attributes:
        title: In words.
        compile: Passes as torch makes them, and a number of threads -> those passes there.
        packages: What has to be installed; the first tells the version.
        starts: Whether a pass takes a while to start whatever is in it, which a layer within a model does not.
    """

    title: str
    compile: Callable[[Passes, int], Call]
    packages: tuple[str, ...]
    starts: bool


RUNTIMES: Mapping[str, Runtime] = {
    "torch": Runtime(title="PyTorch", compile=_torch, packages=("torch",), starts=False),
    "onnx": Runtime(title="ONNX Runtime", compile=_onnx, packages=("onnxruntime", "onnx", "onnxscript"), starts=True),
}


def check_runtime(name: str, said: str) -> None:
    """Whether models can be timed in a runtime.

    Args:
        name: Out of RUNTIMES.
        said: The field that asks for it.

    Raises:
        ConfigError: Something is not installed.
    """
    for package in RUNTIMES[name].packages:
        if find_spec(package) is None:  # not imported, which takes seconds
            raise ConfigError(
                f"{said}: {name} needs {package}; install it with: pip install 'nni-bertnas[export]', or set torch"
            )


def describe_runtime(name: str) -> str:
    """Its first package and that one's version."""
    package = RUNTIMES[name].packages[0]
    return f"{package} {version(package)}"
