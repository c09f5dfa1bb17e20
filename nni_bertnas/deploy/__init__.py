"""A trained model in use: predictions, and the formats it can be exported to. One row of FORMATS each."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from nni_bertnas.artifacts import atomic_folder
from nni_bertnas.errors import ConfigError, lookup


class Exporter(Protocol):
    """What a format's module has as `export`."""

    def __call__(self, source: Path, target: Path) -> None:
        """Write what the format wants of a saved model into a fresh folder.

        Args:
            source: Folder of a saved student or teacher.
            target: Folder that is there and empty.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Format:
    """One format.

    Attributes:
        module: Of this folder; loaded when it is used, as it may need an extra.
        help: What comes out.
    """

    module: str
    help: str


FORMATS: Mapping[str, Format] = {
    "hf": Format(module="hugging_face", help="a folder that loads with transformers alone"),
}


def export(source: Path, name: str, target: Path) -> None:
    """Export a saved model.

    Args:
        source: Its folder.
        name: A key of FORMATS.
        target: Folder that takes it; must not be there yet, or be empty.

    Raises:
        ConfigError: There is no such format or model, or the folder holds something.
    """
    form = lookup(FORMATS, name, "--to")
    if not (source / "config.json").is_file():
        raise ConfigError(f"{source} holds no model; give its folder, e.g. runs/demo/supernet/seed0/student")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"--output: {target} is there already; name another folder")
    exporter: Exporter = importlib.import_module(f"{__name__}.{form.module}").export
    if target.resolve() == Path.cwd():
        raise ConfigError("--output: must not be the folder that the command runs in; name another")
    with atomic_folder(target.resolve()) as folder:
        exporter(source, folder)
