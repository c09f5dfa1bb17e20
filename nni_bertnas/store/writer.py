"""The files of one split of a feature store: written in shards at bounded memory, checked, and mended.

A split is a folder of ragged arrays; no padding is stored. `tokens`, `token_types`, `offsets`, `labels` and `stored`
(which rows have hidden states) come from the tokenizer; `logits.bin` `(num_rows, num_labels)` and, per block edge,
`hidden_<edge>.bin` `(num_hidden_tokens, hidden)` from the teacher; of 8-bit stores also `scale_<edge>.bin`
`(num_hidden_tokens, 1)`. A shard is a run of rows, and so a byte range in each of the teacher's files: a batch is
gathered from one file per edge, whichever shards its rows are in. `shards.json` has the checksums of every finished
shard, so that what is missing or damaged is made anew, and nothing else.
"""

import itertools
import json
import logging
import os
import shutil
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from nni_bertnas.artifacts import fingerprint
from nni_bertnas.data.batches import LengthBatches, TokenDataset
from nni_bertnas.errors import PhaseError
from nni_bertnas.training.metrics import model_inputs

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_log = logging.getLogger(__name__)
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "int8": torch.int8}
SCALE = torch.float32  # of 8-bit values, one per word piece
LOGITS = torch.float16
INDEX, SHARDS = "index.json", "shards.json"
_SHARD_TOKENS = 1 << 15
_BATCH_SIZE = 64  # rows
_READ_BYTES = 1 << 24


def token_bytes(edges: Sequence[int], hidden_size: int, dtype: str) -> int:
    """What the hidden states of one word piece take on disk, over all edges."""
    return len(edges) * (hidden_size * DTYPES[dtype].itemsize + (SCALE.itemsize if dtype == "int8" else 0))


def encode(hidden: Tensor, dtype: str) -> tuple[Tensor, Tensor | None]:
    """Hidden states as they are stored.

    Eight bits: every word piece is divided by its own scale, its greatest absolute value over 127.

    Args:
        hidden: `(tokens, hidden)`, single precision.
        dtype: A key of DTYPES.

    Returns:
        `(tokens, hidden)` in that type, and the scale `(tokens, 1)` of 8-bit values.
    """
    if dtype != "int8":
        return hidden.to(DTYPES[dtype]), None
    scale = hidden.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / 127
    return (hidden / scale).round().to(torch.int8), scale.to(SCALE)


def decode(values: Tensor, scale: Tensor | None = None) -> Tensor:
    """The inverse of :func:`encode`, in single precision."""
    return values.float() if scale is None else values.float() * scale


def shard_rows(lengths: np.ndarray) -> list[tuple[int, int]]:
    """First row and the row after the last of every shard, each of about as many word pieces."""
    ends = np.cumsum(lengths)
    cuts = np.searchsorted(ends, np.arange(_SHARD_TOKENS, ends[-1] if len(ends) else 0, _SHARD_TOKENS), side="right")
    edges = np.unique(np.concatenate([[0], cuts, [len(lengths)]])).tolist()
    return list(itertools.pairwise(edges))


class SplitWriter:
    """Writes one split, or mends it: shards whose checksums are right stay.

    Args:
        folder: Of the split; made where it is missing.
        teacher: In eval mode.
        data: Tokenised rows.
        edges: Layers whose hidden states are stored.
        dtype: A key of DTYPES.
        stored: Which rows have hidden states `(num_rows,)`; None: all.
    """

    def __init__(
        self, folder: Path, teacher: "PreTrainedModel", data: TokenDataset, edges: Sequence[int],
        dtype: str = "float16", stored: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        self.folder, self.teacher, self.data = folder, teacher, data
        self.edges, self.dtype = list(edges), dtype
        self.stored = np.full(len(data), len(self.edges) > 0) if stored is None else stored
        self.hidden_offsets = hidden_offsets(data.lengths, self.stored)
        self.rows = shard_rows(data.lengths)

    def write(self) -> dict[str, Any]:
        """Make what is missing.

        Returns:
            What :data:`INDEX` holds.

        Raises:
            PhaseError: A hidden state does not fit into the type.
        """
        data = self.data
        arrays: dict[str, Any] = {name: getattr(data, name) for name in ("offsets", "tokens", "token_types", "labels")}
        arrays["stored"] = self.stored
        plan = fingerprint(
            self.edges, self.dtype, self.rows, [zlib.crc32(np.ascontiguousarray(array)) for array in arrays.values()],
            self.teacher.config.num_labels,
        )  # fmt: skip
        shards = self._kept(plan)
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / INDEX).unlink(missing_ok=True)
        for name, array in arrays.items():
            np.save(self.folder / f"{name}.npy", array)
        for name, (count, width, dtype) in self._shapes().items():
            path = self.folder / f"{name}.bin"
            path.touch()
            os.truncate(path, count * width * dtype.itemsize)
        for number in range(len(self.rows)):
            if str(number) not in shards:
                shards[str(number)] = self._write_shard(number)
                self._save(SHARDS, {"plan": plan, "shards": shards})
        index = self._index(list(shards.values()))
        self._save(INDEX, index)
        return index

    def _kept(self, plan: str) -> dict[str, Any]:
        """The shards that are there and right; the files of another store are removed."""
        try:
            before = json.loads((self.folder / SHARDS).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            before = {}
        if before.get("plan") != plan:
            shutil.rmtree(self.folder, ignore_errors=True)
            return {}
        kept = {number: one for number, one in before["shards"].items() if self._sums(int(number)) == one["checksums"]}
        for number in sorted(set(before["shards"]) - set(kept), key=int):
            _log.warning("%s: shard %s of %d is damaged; it is made anew", self.folder, number, len(self.rows))
        return kept

    def _shapes(self) -> dict[str, tuple[int, int, torch.dtype]]:
        config, count = self.teacher.config, int(self.hidden_offsets[-1])
        shapes = {"logits": (len(self.data), int(config.num_labels), LOGITS)}
        for edge in self.edges:
            shapes[f"hidden_{edge}"] = (count, config.hidden_size, DTYPES[self.dtype])
            if self.dtype == "int8":
                shapes[f"scale_{edge}"] = (count, 1, SCALE)
        return shapes

    def _range(self, name: str, number: int) -> tuple[int, int]:
        """The bytes of a shard in one of the files."""
        first, stop = self.rows[number]
        if name != "logits":
            first, stop = int(self.hidden_offsets[first]), int(self.hidden_offsets[stop])
        _, width, dtype = self._shapes()[name]
        return first * width * dtype.itemsize, stop * width * dtype.itemsize

    def _sums(self, number: int) -> dict[str, int]:
        return {name: file_checksum(self.folder / f"{name}.bin", *self._range(name, number)) for name in self._shapes()}

    @torch.inference_mode()
    def _write_shard(self, number: int) -> dict[str, Any]:
        first, stop = self.rows[number]
        teacher, data, offsets = self.teacher, self.data, self.hidden_offsets
        base = int(offsets[first])
        buffers = {
            name: torch.empty((stop - first if name == "logits" else int(offsets[stop]) - base, width), dtype=dtype)
            for name, (_, width, dtype) in self._shapes().items()
        }
        sums = {str(edge): np.zeros(3) for edge in self.edges}  # of values, their squares, squared errors
        for batch_rows in LengthBatches(data.lengths[first:stop], _BATCH_SIZE, shuffle=False):
            rows = first + np.asarray(batch_rows)
            batch = {name: tensor.to(teacher.device) for name, tensor in data.__getitems__(rows).items()}
            output = teacher(**model_inputs(teacher, batch), output_hidden_states=True)
            buffers["logits"][torch.from_numpy(rows - first)] = output.logits.to("cpu", LOGITS)
            mask = batch["mask"] & torch.from_numpy(self.stored[rows]).to(teacher.device)[:, None]
            places = offsets[rows][:, None] + np.arange(mask.shape[1]) - base
            at = torch.from_numpy(places)[mask.cpu()]
            kept = mask[batch["mask"]]
            for edge in self.edges:
                hidden = output.hidden_states[edge][batch["mask"]].float()
                sums[str(edge)][:2] += hidden.sum().item(), hidden.square().sum().item()
                hidden = hidden[kept]
                values, scale = encode(hidden, self.dtype)
                buffers[f"hidden_{edge}"][at] = values.cpu()
                if scale is not None:
                    buffers[f"scale_{edge}"][at] = scale.cpu()
                sums[str(edge)][2] += (decode(values, scale) - hidden).square().sum().item()
        for layer, (_, _, error) in sums.items():
            if not np.isfinite(error):
                raise PhaseError(
                    f"the teacher's hidden state at layer {layer} does not fit into half precision; set features.dtype "
                    "to bfloat16"
                )
        checksums = {}
        for name, buffer in buffers.items():
            content = buffer.view(torch.uint8).numpy()
            with (self.folder / f"{name}.bin").open("r+b") as file:
                file.seek(self._range(name, number)[0])
                file.write(content)
            checksums[name] = zlib.crc32(content)
        return {"checksums": checksums, "sums": {edge: values.tolist() for edge, values in sums.items()}}

    def _index(self, shards: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        size = self.teacher.config.hidden_size
        counts = np.array([self.data.offsets[-1]] * 2 + [max(1, self.hidden_offsets[-1])]) * size
        totals = {
            str(edge): sum(np.asarray(shard["sums"][str(edge)]) for shard in shards) / counts for edge in self.edges
        }
        variance = {edge: float(total[1] - total[0] ** 2) for edge, total in totals.items()}
        return {
            "edges": self.edges,
            "dtype": self.dtype,
            "hidden_size": size,
            "num_labels": self.teacher.config.num_labels,
            "num_rows": len(self.data),
            "num_tokens": int(self.data.offsets[-1]),
            "num_hidden_tokens": int(self.hidden_offsets[-1]),
            "num_shards": len(self.rows),
            "pad_token_id": self.data.pad_token_id,
            "variance": variance,
            # Root mean squared error of what is stored over the standard deviation.
            "error": {edge: float((total[2] / max(variance[edge], 1e-12)) ** 0.5) for edge, total in totals.items()},
        }

    def _save(self, name: str, content: Any) -> None:
        fresh = self.folder / f".{name}"
        fresh.write_text(json.dumps(content), encoding="utf-8")
        fresh.replace(self.folder / name)


def hidden_offsets(lengths: np.ndarray, stored: np.ndarray) -> np.ndarray:
    """Where every row's hidden states start, `(num_rows + 1,)`; rows without any have none."""
    return np.concatenate([[0], np.cumsum(lengths * stored)]).astype(np.int64)


def file_checksum(path: Path, start: int, stop: int) -> int:
    """CRC-32 of a byte range of a file, -1 where the file is shorter."""
    value = 0
    try:
        for part in _read(path, start, stop):
            value = zlib.crc32(part, value)
    except (OSError, EOFError):
        return -1
    return value


def _read(path: Path, start: int, stop: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(start)
        while start < stop:
            part = file.read(min(_READ_BYTES, stop - start))
            if not part:
                raise EOFError
            start += len(part)
            yield part
