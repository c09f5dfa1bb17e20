"""Writing one split of a feature store: in shards at bounded memory, checked, and mended.

A shard is a run of rows, and so a byte range in each of the teacher's files: a batch is gathered from one file per
edge, whichever shards its rows are in. `shards.json` has the checksums of every finished shard, so that what is missing
or damaged is made anew, and nothing else.
"""

import dataclasses
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
from nni_bertnas.data.batches import LengthBatches, TokenDataset, model_inputs
from nni_bertnas.errors import PhaseError
from nni_bertnas.store.layout import ARRAYS, INDEX, Index, Layout, decode, encode, hidden_offsets, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_log = logging.getLogger(__name__)
_SHARDS = "shards.json"
_SHARD_TOKENS = 1 << 15
BATCH_SIZE = 64  # rows
_READ_BYTES = 1 << 24


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
        self.edges = list(edges)
        self.stored = np.full(len(data), len(self.edges) > 0) if stored is None else stored
        self.hidden_offsets = hidden_offsets(data.lengths, self.stored)
        self.rows = shard_rows(data.lengths)
        self.layout = Layout(
            edges=self.edges,
            dtype=dtype,
            hidden_size=teacher.config.hidden_size,
            num_labels=int(teacher.config.num_labels),
            num_rows=len(data),
            num_hidden_tokens=int(self.hidden_offsets[-1]),
        )

    def write(self) -> Index:
        """Make what is missing.

        Returns:
            What describes the split.

        Raises:
            PhaseError: A hidden state does not fit into the type.
        """
        data = self.data
        arrays: dict[str, np.ndarray] = {name: getattr(data, name) for name in ARRAYS if name != "stored"}
        arrays["stored"] = self.stored
        plan = fingerprint(
            self.edges, self.layout.dtype, self.rows,
            [zlib.crc32(np.ascontiguousarray(array).data) for array in arrays.values()], self.layout.num_labels,
        )  # fmt: skip
        shards = self._kept(plan)
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / INDEX).unlink(missing_ok=True)
        for name, array in arrays.items():
            np.save(self.folder / f"{name}.npy", array)
        for name, file in self.layout.files().items():
            path = self.folder / f"{name}.bin"
            path.touch()
            os.truncate(path, file.count * file.row_bytes)
        for number in range(len(self.rows)):
            if str(number) not in shards:
                shards[str(number)] = self._write_shard(number)
                write_json(self.folder / _SHARDS, {"plan": plan, "shards": shards})
        index = self._index(list(shards.values()))
        index.write(self.folder)
        return index

    def _kept(self, plan: str) -> dict[str, Any]:
        """The shards that are there and right; the files of another store are removed."""
        try:
            before = json.loads((self.folder / _SHARDS).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            before = {}
        if before.get("plan") != plan:
            shutil.rmtree(self.folder, ignore_errors=True)
            return {}
        kept = {number: one for number, one in before["shards"].items() if self._sums(int(number)) == one["checksums"]}
        for number in sorted(set(before["shards"]) - set(kept), key=int):
            _log.warning("%s: shard %s of %d is damaged; it is made anew", self.folder, number, len(self.rows))
        return kept

    def _range(self, name: str, number: int) -> tuple[int, int]:
        """The bytes of a shard in one of the files."""
        first, stop = self.rows[number]
        if name != "logits":
            first, stop = int(self.hidden_offsets[first]), int(self.hidden_offsets[stop])
        size = self.layout.files()[name].row_bytes
        return first * size, stop * size

    def _sums(self, number: int) -> dict[str, int]:
        names = self.layout.files()
        return {name: file_checksum(self.folder / f"{name}.bin", *self._range(name, number)) for name in names}

    def _write_shard(self, number: int) -> dict[str, Any]:
        buffers, sums = self._run_teacher(*self.rows[number])
        for layer, (_, _, error) in sums.items():
            if not np.isfinite(error):
                raise PhaseError(
                    f"the teacher's hidden state at layer {layer} does not fit into half precision; set features.dtype "
                    "to bfloat16"
                )
        checksums = {}
        for name, buffer in buffers.items():
            content = buffer.view(torch.uint8).numpy().data
            with (self.folder / f"{name}.bin").open("r+b") as file:
                file.seek(self._range(name, number)[0])
                file.write(content)
            checksums[name] = zlib.crc32(content)
        return {"checksums": checksums, "sums": {edge: values.tolist() for edge, values in sums.items()}}

    @torch.inference_mode()
    def _run_teacher(self, first: int, stop: int) -> tuple[dict[str, Tensor], dict[str, np.ndarray]]:
        """What goes into the files of the rows from `first` to `stop`, and the sums of which the index is made."""
        teacher, data, offsets, dtype = self.teacher, self.data, self.hidden_offsets, self.layout.dtype
        base = int(offsets[first])
        buffers = {
            name: torch.empty(
                (stop - first if name == "logits" else int(offsets[stop]) - base, file.width), dtype=file.dtype
            )
            for name, file in self.layout.files().items()
        }
        sums = {str(edge): np.zeros(3) for edge in self.edges}  # of values, their squares, squared errors
        for batch_rows in LengthBatches(data.lengths[first:stop], BATCH_SIZE, shuffle=False):
            rows = first + np.asarray(batch_rows)
            batch = data.batch(rows).to(teacher.device)
            output = teacher(**model_inputs(teacher, batch), output_hidden_states=True)
            buffers["logits"][torch.from_numpy(rows - first)] = output.logits.to("cpu", buffers["logits"].dtype)
            mask = batch.mask & torch.from_numpy(self.stored[rows]).to(teacher.device)[:, None]
            places = offsets[rows][:, None] + np.arange(mask.shape[1]) - base
            at = torch.from_numpy(places)[mask.cpu()]
            kept = mask[batch.mask]
            for edge in self.edges:
                hidden = output.hidden_states[edge][batch.mask].float()
                sums[str(edge)][:2] += hidden.sum().item(), hidden.square().sum().item()
                hidden = hidden[kept]
                encoded = encode(hidden, dtype)
                for name, part in zip(self.layout.of_edge(edge), encoded, strict=True):
                    buffers[name][at] = part.cpu()
                sums[str(edge)][2] += (decode(*encoded) - hidden).square().sum().item()
        return buffers, sums

    def _index(self, shards: Sequence[Mapping[str, Any]]) -> Index:
        counts = np.array([self.data.offsets[-1]] * 2 + [max(1, self.hidden_offsets[-1])]) * self.layout.hidden_size
        totals = {
            str(edge): sum(np.asarray(shard["sums"][str(edge)]) for shard in shards) / counts for edge in self.edges
        }
        variance = {edge: float(total[1] - total[0] ** 2) for edge, total in totals.items()}
        return Index(
            **dataclasses.asdict(self.layout),
            num_tokens=int(self.data.offsets[-1]),
            num_shards=len(self.rows),
            pad_token_id=self.data.pad_token_id,
            variance=variance,
            error={edge: float((total[2] / max(variance[edge], 1e-12)) ** 0.5) for edge, total in totals.items()},
            live=len(self.edges) > 0 and not self.stored.any(),
        )


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
