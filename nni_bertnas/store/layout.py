"""What a split of a feature store is on disk: its files, their shapes and types, and what describes them.

A split is a folder of ragged arrays; no padding is stored. The arrays of ARRAYS come from the tokenizer (`stored` says
which rows have hidden states); `logits.bin` `(num_rows, num_labels)` from the teacher, `vectors.bin`
`(num_rows, sides * hidden)`, the mean of the last hidden state over each text of the row, and, per block edge,
`hidden_<edge>.bin` `(num_hidden_tokens, hidden)`; of 8-bit stores also `scale_<edge>.bin` `(num_hidden_tokens, 1)`.

Where the texts of a pair are read separately, hidden states and vectors come from the encoder that the teacher was
fine-tuned from, which reads every text by itself.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nni_bertnas.artifacts import write_whole
from nni_bertnas.errors import PhaseError

DTYPES: Mapping[str, torch.dtype] = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int8": torch.int8,  # with a scale per word piece
}
_SCALE = torch.float32
INDEX = "index.json"
ARRAYS = ("offsets", "tokens", "token_types", "labels", "stored")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowFile:
    """A file of rows of equal width.

    Attributes:
        count: Rows.
        width: Of a row.
        dtype: Of what a row holds.
    """

    count: int
    width: int
    dtype: torch.dtype

    @property
    def row_bytes(self) -> int:
        """Of one row."""
        return self.width * self.dtype.itemsize


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """The shapes of a split's files.

    Attributes:
        edges: Layers whose hidden states are stored.
        dtype: A key of DTYPES.
        hidden_size: Width of the hidden states.
        num_labels: Width of the logits.
        num_rows: All rows.
        num_hidden_tokens: Word pieces of the rows whose hidden states are stored.
        sides: Texts of a row.
        separate: Whether they are read separately.
    """

    edges: list[int]
    dtype: str
    hidden_size: int
    num_labels: int
    num_rows: int
    num_hidden_tokens: int
    sides: int = 1
    separate: bool = False

    def of_edge(self, edge: int) -> dict[str, RowFile]:
        """The files of one edge: its values and, of 8-bit values, their scales."""
        count = self.num_hidden_tokens
        files = {f"hidden_{edge}": RowFile(count=count, width=self.hidden_size, dtype=DTYPES[self.dtype])}
        if self.dtype == "int8":
            files[f"scale_{edge}"] = RowFile(count=count, width=1, dtype=_SCALE)
        return files

    @property
    def logits(self) -> RowFile:
        """The file of the logits."""
        return RowFile(count=self.num_rows, width=self.num_labels, dtype=torch.float32)

    @property
    def vectors(self) -> RowFile:
        """The file of the sentence vectors."""
        return RowFile(count=self.num_rows, width=self.sides * self.hidden_size, dtype=torch.float16)

    def files(self) -> dict[str, RowFile]:
        """Every file that the teacher fills, by the name before its ending `.bin`."""
        files = {"logits": self.logits, "vectors": self.vectors}
        for edge in self.edges:
            files |= self.of_edge(edge)
        return files

    def token_bytes(self) -> int:
        """What the hidden states of one word piece take, over all edges."""
        return sum(file.row_bytes for edge in self.edges for file in self.of_edge(edge).values())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Index(Layout):
    """A whole split, as its file INDEX describes it.

    Attributes:
        num_tokens: Word pieces of all rows.
        num_shards: Of the teacher's files.
        pad_token_id: Of the tokenizer.
        variance: By edge, of all entries of its hidden states.
        error: By edge, root mean squared error of what is stored over the standard deviation.
        live: Whether no hidden states are stored, and the teacher runs for them.
    """

    num_tokens: int
    num_shards: int
    pad_token_id: int
    variance: dict[str, float]
    error: dict[str, float]
    live: bool = False

    def write(self, folder: Path) -> None:
        """Write it into a split's folder, at once."""
        write_whole(folder / INDEX, json.dumps(dataclasses.asdict(self)))

    @classmethod
    def read(cls, folder: Path) -> "Index":
        """Read it.

        Raises:
            PhaseError: It is missing or damaged.
        """
        try:
            return cls(**json.loads((folder / INDEX).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise PhaseError(f"{folder} holds no features; make them with: bertnas features STUDY") from error


def encode(hidden: Tensor, dtype: str) -> tuple[Tensor, ...]:
    """Hidden states as they are stored.

    Eight bits: every word piece is divided by its own scale, its greatest absolute value over 127.

    Args:
        hidden: `(tokens, hidden)`, single precision.
        dtype: A key of DTYPES.

    Returns:
        `(tokens, hidden)` in that type, and of 8-bit values the scale `(tokens, 1)`.
    """
    if dtype != "int8":
        return (hidden.to(DTYPES[dtype]),)
    scale = hidden.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / 127
    return (hidden / scale).round().to(torch.int8), scale.to(_SCALE)


def decode(values: Tensor, scale: Tensor | None = None) -> Tensor:
    """The inverse of :func:`encode`, in single precision."""
    return values.float() if scale is None else values.float() * scale


def hidden_offsets(lengths: np.ndarray, stored: np.ndarray) -> np.ndarray:
    """Where every row's hidden states start, `(num_rows + 1,)`; rows without any have none."""
    return np.concatenate([[0], np.cumsum(lengths * stored)]).astype(np.int64)
