"""What an exported model becomes a container image by: a Dockerfile, and the packages that it installs."""

import shutil
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from nni_bertnas.errors import ConfigError

DOCKERFILE, REQUIREMENTS = "Dockerfile", "requirements.txt"
NEEDED = ("numpy", "onnxruntime", "tokenizers", "fastapi", "uvicorn", "prometheus-client")
LEFT_OUT = ("huggingface-hub",)  # tokenizers fetches models by it, which the runtime never does
_INSIDE = {  # what the Dockerfile's image is, whatever this machine is
    "extra": "",
    "os_name": "posix",
    "platform_system": "Linux",
    "sys_platform": "linux",
    "python_version": "3.11",
    "python_full_version": "3.11.2",
}


def write_container(folder: Path) -> None:
    """Write a Dockerfile, and the versions of the packages that are installed here, with which the model was checked.

    Args:
        folder: Of an exported ONNX model.

    Raises:
        ConfigError: One of the packages is not installed.
    """
    shutil.copyfile(Path(__file__).with_name(DOCKERFILE), folder / DOCKERFILE)
    lines = [f"{name}=={version}\n" for name, version in sorted(pinned().items())]
    (folder / REQUIREMENTS).write_text("".join(lines), encoding="utf-8")


def pinned() -> dict[str, str]:
    """The installed versions of NEEDED and of all that they depend on, by name; without LEFT_OUT."""
    found: dict[str, str] = {}
    waiting = list(NEEDED)
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in found or name in LEFT_OUT:
            continue
        try:
            installed = distribution(name)
        except PackageNotFoundError as error:
            raise ConfigError(
                f"--to onnx: {REQUIREMENTS} needs the version of {name}, which is not installed; install it with: "
                "pip install 'nni-bertnas[export]'"
            ) from error
        found[name] = installed.version
        wanted = map(Requirement, installed.requires or ())
        waiting += [one.name for one in wanted if one.marker is None or one.marker.evaluate(_INSIDE)]
    return found
