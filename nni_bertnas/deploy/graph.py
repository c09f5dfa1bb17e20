"""A saved model as a function of arrays, as the formats that are no folder of transformers take it."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nni_bertnas import __version__, runtime
from nni_bertnas.data.batches import Batch, model_inputs
from nni_bertnas.data.models import load_classifier
from nni_bertnas.deploy.predict import cut_length, kind_of
from nni_bertnas.errors import ConfigError
from nni_bertnas.runtime.manifest import TOKENIZER, Manifest
from nni_bertnas.student.onnx import Positional

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Opened:
    """A saved model, ready to be written in another format.

    Attributes:
        model: On the CPU, in eval mode.
        tokenizer: Its own.
        example: Its inputs by name, each `(2, 12)`: a row of two texts, and a shorter one.
        max_length: Word pieces that a row is cut to.
    """

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    example: dict[str, Tensor]
    max_length: int

    @property
    def graph(self) -> Positional:
        """The model as a function of the example's inputs."""
        return Positional(self.model, tuple(self.example)).eval()

    def write_manifest(self, folder: Path, file: str, opset: int | None = None) -> None:
        """Write what is needed beside the model's file: the tokenizer, what the model is, and the code that runs it.

        Args:
            folder: Takes both.
            file: Name of the model's file.
            opset: Of ONNX.
        """
        config = self.model.config
        note = getattr(config, "bertnas_task", None) or {}
        self.tokenizer.backend_tokenizer.save(str(folder / TOKENIZER))
        shutil.copytree(
            Path(runtime.__file__).parent, folder / "bertnas_runtime", ignore=shutil.ignore_patterns("__pycache__")
        )
        labels = [str(config.id2label[number]) for number in range(config.num_labels)]
        Manifest(
            model=file,
            kind=kind_of(config),
            labels=labels,
            inputs=list(self.example),
            pad_id=self.tokenizer.pad_token_id or 0,
            max_length=self.max_length,
            task=note.get("name", ""),
            texts=list(note.get("texts", ())),
            opset=opset,
            agreement=None,
            version=__version__,
        ).write(folder)


def open_model(source: Path) -> Opened:
    """Open a saved model to write it in another format.

    Raises:
        ConfigError: The folder holds none, or its tokenizer needs Python.
    """
    model, tokenizer = load_classifier(source)
    if not getattr(tokenizer, "is_fast", False):
        raise ConfigError(
            f"{source}: its tokenizer is Python code, which runs nowhere else; save it with a fast one (tokenizer.json)"
        )
    length = 12
    mask = torch.ones(2, length, dtype=torch.bool)
    mask[1, length - 3 :] = False
    ids = torch.full((2, length), 5).masked_fill(~mask, tokenizer.pad_token_id or 0)
    types = torch.zeros(2, length, dtype=torch.long)
    types[:, length // 2 :] = mask[:, length // 2 :].long()
    if tokenizer.sep_token_id is not None:
        ids[:, [length // 2 - 1, length - 4]] = tokenizer.sep_token_id
    rows = Batch(input_ids=ids, mask=mask, token_type_ids=types)
    return Opened(model, tokenizer, model_inputs(model, rows), cut_length(model, tokenizer))
