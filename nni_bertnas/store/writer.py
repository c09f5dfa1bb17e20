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
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from nni_bertnas import ranks
from nni_bertnas.artifacts import file_checksum, fingerprint, write_whole
from nni_bertnas.data.batches import Batch, TokenDataset, model_inputs
from nni_bertnas.data.models import packed, unpacked
from nni_bertnas.data.samplers import LengthBatches
from nni_bertnas.errors import PhaseError
from nni_bertnas.store.layout import ARRAYS, INDEX, Index, Layout, decode, encode, hidden_offsets
from nni_bertnas.tracking.tracker import Progress, unwatched
from search_space.heads import split_pairs

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_log = logging.getLogger(__name__)
_SHARDS = "shards.json"
_SHARD_TOKENS = 1 << 15
BATCH_SIZE = 64  # rows


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
        teacher: In eval mode; gives the logits. None: there are none.
        data: Tokenised rows.
        edges: Layers whose hidden states are stored.
        dtype: A key of DTYPES.
        stored: Which rows have hidden states `(num_rows,)`; None: all.
        encoder: Gives hidden states and vectors, and reads the texts of every pair separately; None: the teacher does.
        vectors: That are known already, `(num_rows, sides * hidden)`, where no edges are stored.
    """

    def __init__(
        self, folder: Path, teacher: "PreTrainedModel | None", data: TokenDataset, edges: Sequence[int],
        dtype: str = "float16", stored: np.ndarray | None = None, encoder: "PreTrainedModel | None" = None,
        vectors: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        self.folder, self.teacher, self.data, self.encoder = folder, teacher, data, encoder
        self.edges, self.vectors = list(edges), vectors
        sides = 2 if data.token_types.any() else 1
        self.stored = np.full(len(data), len(self.edges) > 0) if stored is None else stored
        self.hidden_offsets = hidden_offsets(data.lengths, self.stored)
        self.rows = shard_rows(data.lengths)
        self.layout = Layout(
            edges=self.edges,
            dtype=dtype,
            hidden_size=self._reader.config.hidden_size if vectors is None else vectors.shape[1] // sides,
            num_labels=0 if teacher is None else int(teacher.config.num_labels),
            num_rows=len(data),
            num_hidden_tokens=int(self.hidden_offsets[-1]),
            sides=sides,
            separate=encoder is not None,
        )

    @property
    def _reader(self) -> "PreTrainedModel":
        """What gives hidden states and vectors."""
        found = self.teacher if self.encoder is None else self.encoder
        assert found is not None
        return found

    def write(self, progress: Progress = unwatched) -> Index:
        """Make what is missing.

        Args:
            progress: Takes the rows done.

        Returns:
            What describes the split.

        Raises:
            PhaseError: A hidden state does not fit into the type.
        """
        data = self.data
        arrays: dict[str, np.ndarray] = {name: getattr(data, name) for name in ARRAYS if name != "stored"}
        arrays["stored"] = self.stored
        plan = fingerprint(
            self.edges, self.layout.dtype, self.layout.separate, self.rows,
            [zlib.crc32(np.ascontiguousarray(array).data) for array in arrays.values()], self.layout.num_labels,
            str(self.layout.logits.dtype),
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
        missing = [number for number in range(len(self.rows)) if str(number) not in shards]
        done = 0
        for stop in self._ends(shards, done):
            progress(done := stop, len(data))
        for number, shard in self._make(missing, lambda rows: progress(done + rows, len(data))):
            shards[str(number)] = shard
            write_whole(self.folder / _SHARDS, json.dumps({"plan": plan, "shards": shards}, sort_keys=True))
            for stop in self._ends(shards, done):
                progress(done := stop, len(data))
        index = self._index([shards[str(number)] for number in range(len(self.rows))])
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

    def _ends(self, shards: Mapping[str, Any], done: int) -> Iterator[int]:
        """Where the shards end that follow `done` rows without a gap."""
        for number, (first, stop) in enumerate(self.rows):
            if first >= done:
                if str(number) not in shards:
                    return
                yield stop

    def _make(self, numbers: Sequence[int], report: Callable[[int], None]) -> Iterator[tuple[int, dict[str, Any]]]:
        """Shards as they are made, in turns by all ranks where there are others."""
        others = ranks.active() if len(numbers) > 1 else None
        if others is None:
            yield from ((number, self._write_shard(number, report)) for number in numbers)
            return
        with others.working(_write_shards, self, numbers, others.size):
            for number in numbers[:: others.size]:
                yield number, self._write_shard(number, lambda rows: None)
                yield from others.heard()
        yield from others.heard()

    def __getstate__(self) -> dict[str, Any]:
        """For another process, where transformers has to build the models anew to give their hidden states."""
        return self.__dict__ | {"teacher": packed(self.teacher), "encoder": packed(self.encoder)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state | {name: unpacked(state[name]) for name in ("teacher", "encoder")}

    def _range(self, name: str, number: int) -> tuple[int, int]:
        """The bytes of a shard in one of the files."""
        first, stop = self.rows[number]
        if name not in ("logits", "vectors"):
            first, stop = int(self.hidden_offsets[first]), int(self.hidden_offsets[stop])
        size = self.layout.files()[name].row_bytes
        return first * size, stop * size

    def _sums(self, number: int) -> dict[str, int]:
        names = self.layout.files()
        try:
            return {name: file_checksum(self.folder / f"{name}.bin", *self._range(name, number)) for name in names}
        except (OSError, EOFError):
            return {}

    def _write_shard(self, number: int, report: Callable[[int], None]) -> dict[str, Any]:
        buffers, sums = self._run_teacher(*self.rows[number], report)
        if buffers["logits"].isinf().any():
            raise PhaseError(
                "the teacher's answers are not finite; make it anew with: bertnas run STUDY --force teacher"
            )
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
    def _run_teacher(
        self, first: int, stop: int, report: Callable[[int], None]
    ) -> tuple[dict[str, Tensor], dict[str, np.ndarray]]:
        """What goes into the files of the rows from `first` to `stop`, and the sums of which the index is made."""
        data, offsets, dtype = self.data, self.hidden_offsets, self.layout.dtype
        device = self._reader.device if self.vectors is None or self.teacher is not None else torch.device("cpu")
        base = int(offsets[first])
        buffers = {
            name: torch.empty(
                (stop - first if name in ("logits", "vectors") else int(offsets[stop]) - base, file.width),
                dtype=file.dtype,
            )
            for name, file in self.layout.files().items()
        }
        sums = {str(edge): np.zeros(3) for edge in self.edges}  # of values, their squares, squared errors
        batches, done = list(LengthBatches(data.lengths[first:stop], BATCH_SIZE, shuffle=False)), 0
        for batch_rows in reversed(batches):  # so that what a GPU reserves for the longest serves the others
            rows = first + np.asarray(batch_rows)
            batch = data.batch(rows).to(device)
            known = None if self.vectors is None else torch.from_numpy(self.vectors[rows])
            logits, states, vectors = run_models(self.teacher, self.encoder, batch, self.layout.sides, known)
            for name, values in (("logits", logits), ("vectors", vectors)):
                buffers[name][torch.from_numpy(rows - first)] = values.to("cpu", buffers[name].dtype)
            mask = batch.mask & torch.from_numpy(self.stored[rows]).to(device)[:, None]
            places = offsets[rows][:, None] + np.arange(mask.shape[1]) - base
            at = torch.from_numpy(places)[mask.cpu()]
            kept = mask[batch.mask]
            for edge in self.edges:
                hidden = states[edge][batch.mask].float()
                sums[str(edge)][:2] += hidden.sum().item(), hidden.square().sum().item()
                hidden = hidden[kept]
                encoded = encode(hidden, dtype)
                for name, part in zip(self.layout.of_edge(edge), encoded, strict=True):
                    buffers[name][at] = part.cpu()
                sums[str(edge)][2] += (decode(*encoded) - hidden).square().sum().item()
            done += len(rows)
            report(done)
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


def _write_shards(writer: SplitWriter, numbers: Sequence[int], size: int) -> None:
    """What another rank does of :meth:`SplitWriter._make`."""
    for number in numbers[ranks.number() :: size]:
        ranks.tell((number, writer._write_shard(number, lambda rows: None)))


def run_models(
    teacher: "PreTrainedModel | None",
    encoder: "PreTrainedModel | None",
    batch: Batch,
    sides: int,
    vectors: Tensor | None = None,
) -> tuple[Tensor, Sequence[Tensor], Tensor]:
    """What is stored of a batch.

    Args:
        teacher: Gives the logits, where there is one, and without an encoder the rest.
        encoder: Reads every text by itself.
        batch: With tokens.
        sides: Texts of a row.
        vectors: `(batch, sides * hidden)`, where they are known and no hidden state is wanted.

    Returns:
        Logits `(batch, num_labels)`, no numbers where the second text of a pair is missing; hidden states by layer,
        each `(batch, seq, hidden)` in the places of the joint sequence; the mean of the last over each text,
        `(batch, sides * hidden)`, of pairs side by side, zeros where a text is missing.
    """
    assert batch.token_type_ids is not None
    second, first = ((batch.token_type_ids == kind) & batch.mask for kind in (1, 0))
    logits = torch.zeros(len(batch), 0)
    if teacher is not None:
        output = teacher(**model_inputs(teacher, batch), output_hidden_states=encoder is None and vectors is None)
        logits = output.logits if sides == 1 else output.logits.masked_fill(~_is_text(second), float("nan"))
    if vectors is not None:
        return logits, (), vectors
    if encoder is not None and sides == 2:
        return logits, *read_separately(encoder, batch)
    if encoder is not None:
        output = encoder(**model_inputs(encoder, batch), output_hidden_states=True)
    states, masks = output.hidden_states, [first, second][:sides]
    return logits, states, torch.cat([mean_vector(states[-1], mask) * _is_text(mask) for mask in masks], dim=1)


def _is_text(mask: Tensor) -> Tensor:
    """Whether a mask, `(batch, seq)`, has more than the piece that ends a text, `(batch, 1)`."""
    return mask.sum(1, keepdim=True) > 1


def read_alone(batch: Batch) -> tuple[Batch, Tensor]:
    """The texts of pairs as sequences of their own, each with the piece that opens one.

    Args:
        batch: Of pairs, joint.

    Returns:
        `(2 * batch, 1 + side)`, and the mask without the piece that opens, `(2 * batch, side)`.
    """
    ids, types = batch.input_ids, batch.token_type_ids
    assert ids is not None and types is not None
    second = (types == 1) & batch.mask
    sides, side_mask = split_pairs((types < 2) & batch.mask, second, ids)
    opened = [torch.cat([part, value], dim=1) for part, value in (
        (ids[:, :1].repeat(2, 1), sides), (torch.ones_like(side_mask[:, :1]), side_mask)
    )]  # fmt: skip
    return Batch(input_ids=opened[0], mask=opened[1], token_type_ids=torch.zeros_like(opened[0])), side_mask


def read_separately(encoder: "PreTrainedModel", batch: Batch) -> tuple[list[Tensor], Tensor]:
    """Hidden states and mean vectors of an encoder that is given every text of a pair by itself.

    Args:
        encoder: Of single texts.
        batch: Of pairs, joint.

    Returns:
        As of :func:`run_models`.
    """
    types, mask = batch.token_type_ids, batch.mask
    assert types is not None
    second, own = (types == 1) & mask, (types == 0) & mask
    alone, side_mask = read_alone(batch)
    found = encoder(**model_inputs(encoder, alone), output_hidden_states=True).hidden_states
    vectors = torch.cat((mean_vector(found[-1], alone.mask) * _is_text(side_mask)).chunk(2), dim=1)
    own[:, 0] = False
    joint = []
    for hidden in found:
        (first, other), (first_mask, other_mask) = hidden[:, 1:].chunk(2), side_mask.chunk(2)
        state = torch.zeros(*mask.shape, hidden.shape[-1], dtype=hidden.dtype, device=hidden.device)
        state[own], state[second] = first[first_mask], other[other_mask]
        state[:, 0] = hidden[: len(mask), 0]
        joint.append(state)
    return joint, vectors


@torch.inference_mode()
def text_vectors(encoder: "PreTrainedModel", data: TokenDataset, progress: Progress = unwatched) -> np.ndarray:
    """The mean of the last hidden state over every single text, `(num_rows, hidden)`."""
    found: np.ndarray = np.zeros((len(data), encoder.config.hidden_size), np.float32)
    done = 0
    for rows in LengthBatches(data.lengths, BATCH_SIZE, shuffle=False):
        batch = data.batch(rows).to(encoder.device)
        found[rows] = run_models(None, encoder, batch, 1)[2].cpu().numpy()
        done += len(rows)
        progress(done, len(data), "texts")
    return found


def mean_vector(hidden: Tensor, mask: Tensor) -> Tensor:
    """Over unmasked positions: `(batch, seq, hidden)`, `(batch, seq)` -> `(batch, hidden)`."""
    keep = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * keep).sum(1) / keep.sum(1).clamp(min=1)
