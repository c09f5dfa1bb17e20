"""What an exported folder says of its model, `bertnas.json`."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from .errors import ConfigError

FILE = "bertnas.json"
TOKENIZER = "tokenizer.json"
Kind = Literal["class", "labels", "score"]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What is needed to use an exported model.

    Attributes:
        model: Name of its file.
        kind: Whether a row has one class, any number of labels, or a score.
        labels: Names in the order of the outputs; one of a score.
        inputs: What the model takes, of `input_ids`, `attention_mask`, `token_type_ids`; each `(batch, seq)`.
        pad_id: Word piece that fills a row up.
        max_length: Word pieces that a row is cut to.
        task: Name of the task; empty where it is not known.
        texts: Columns that it was trained on; two where it reads pairs; none where they are not known.
        opset: Of ONNX; None where it is no such model.
        agreement: How near it comes to the model it was made from; see `deploy.fidelity`.
        version: Of this package.
    """

    model: str
    kind: Kind
    labels: list[str]
    inputs: list[str]
    pad_id: int
    max_length: int
    task: str
    texts: list[str]
    opset: int | None
    agreement: dict[str, float] | None
    version: str

    def write(self, folder: Path) -> None:
        """Write it into the folder."""
        (folder / FILE).write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False), encoding="utf-8")


def check_links(folder: Path) -> None:
    """Whether all files of a folder lie in it.

    Raises:
        ConfigError: A link leads elsewhere.
    """
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
            name = path.relative_to(folder)
            raise ConfigError(f"{folder}: {name} is a link out of the folder; put the file itself there")


def read_manifest(folder: Path) -> Manifest:
    """What the folder says.

    Raises:
        ConfigError: It is no exported model, or links lead out of it.
    """
    try:
        check_links(folder)
        return Manifest(**json.loads((folder / FILE).read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise ConfigError(f"{folder} holds no {FILE}; make it with: bertnas export MODEL --to onnx") from None
    except (OSError, TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"{folder / FILE} cannot be read ({error}); export the model once more") from error
