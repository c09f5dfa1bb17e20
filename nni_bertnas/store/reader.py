"""Reading a feature store: the teacher ran once over the data, and every phase reads what it gave.

A folder per split, see :mod:`~nni_bertnas.store.layout`. A hidden state at an edge is Hugging Face's
`hidden_states[layer]`. All trials of a study on one machine share the files, and through them the page cache; on
shared storage any number of machines does.
"""

import os
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from nni_bertnas.data.batches import Batch, Numbers, model_inputs, ragged_positions, token_batch
from nni_bertnas.errors import PhaseError
from nni_bertnas.machine import best_device
from nni_bertnas.store.layout import Index, RowFile, decode, hidden_offsets
from nni_bertnas.store.writer import read_separately
from search_space.heads import split_pairs

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SERIAL_ELEMENTS = 1 << 15  # up to so many torch does not parallelise


class _RowReader:
    """A file of rows, read in pieces.

    Not mapped into memory: the system maps a hundred times what is gathered (large folios), so that reading a store
    of 400,000 rows at random took its whole size in resident memory. One read call per piece is as fast.
    """

    def __init__(self, path: Path, file: RowFile) -> None:
        self._row_bytes, self._dtype = file.row_bytes, file.dtype
        try:
            if path.stat().st_size != file.count * file.row_bytes:
                raise OSError
            self._file = path.open("rb", buffering=0)
        except OSError as error:
            raise PhaseError(f"{path} is missing or damaged; mend the store with: bertnas features STUDY") from error

    def read(self, starts: np.ndarray, counts: np.ndarray) -> Tensor:
        """Pieces that start at some row, `(batch,)`, of some rows each, `(batch,)`: `(batch, longest, width)`.

        What lies beyond a piece's end is zero.
        """
        buffer: np.ndarray = np.zeros((len(starts), int(counts.max()) * self._row_bytes), np.uint8)
        number, size = self._file.fileno(), self._row_bytes
        for piece, start, stop in zip(buffer, (starts * size).tolist(), (counts * size).tolist(), strict=True):
            if os.preadv(number, [piece[:stop]], start) != stop:  # by position: threads may share the file
                raise PhaseError(f"{self._file.name} became shorter; mend the store with: bertnas features STUDY")
        return torch.from_numpy(buffer).view(self._dtype).view(len(starts), int(counts.max()), -1)


def _decode(values: Tensor, *scale: Tensor) -> Tensor:
    """As :func:`~nni_bertnas.store.layout.decode`, in parts so small that torch leaves them to the thread it is in.

    Batches are read ahead in a thread, and torch's threads of two such threads fight for the cores.
    """
    tensors = [tensor.flatten(0, 1).split(max(1, _SERIAL_ELEMENTS // values.shape[-1])) for tensor in (values, *scale)]
    return torch.cat([decode(*parts) for parts in zip(*tensors, strict=True)]).view(values.shape)


class FeatureStore:
    """One split of a store, opened for reading; files are opened when first used.

    Args:
        folder: Of the split.
        teacher: Loads what gives the hidden states; needed where the store is live.
        answer: Makes the logits out of those that are stored and of the vectors; None: they are the stored ones.

    Raises:
        PhaseError: The folder is missing or damaged.
    """

    def __init__(
        self,
        folder: str | Path,
        teacher: "Callable[[], PreTrainedModel] | None" = None,
        answer: "Callable[[np.ndarray, np.ndarray], np.ndarray] | None" = None,
    ) -> None:
        self.folder = Path(folder)
        self.index = Index.read(self.folder)
        self.edges, self.hidden_size = self.index.edges, self.index.hidden_size
        self._load_teacher, self._answer = teacher, answer

    def __reduce__(self) -> Any:
        return FeatureStore, (self.folder, self._load_teacher, self._answer)  # another process opens it anew

    def _array(self, name: str) -> np.ndarray:
        path = self.folder / f"{name}.npy"
        try:
            return np.load(path, mmap_mode="r")
        except (OSError, ValueError, EOFError) as error:
            raise PhaseError(f"{path} is missing or damaged; mend the store with: bertnas features STUDY") from error

    @cached_property
    def offsets(self) -> np.ndarray:
        """Start of every row, `(num_rows + 1,)`."""
        return np.asarray(self._array("offsets"))

    @cached_property
    def tokens(self) -> np.ndarray:
        """Word pieces of all rows, `(num_tokens,)`."""
        return self._array("tokens")

    @cached_property
    def token_types(self) -> np.ndarray:
        """Of every word piece, `(num_tokens,)`: 1 in the second text of a pair."""
        return self._array("token_types")

    @cached_property
    def has_pairs(self) -> bool:
        """Whether any row has a second text."""
        return bool(self.token_types.any())

    @cached_property
    def labels(self) -> np.ndarray:
        """`(num_rows,)`; `rows.UNLABELLED`, or not-a-number for scores, where a row has none."""
        return np.asarray(self._array("labels"))

    @cached_property
    def logits(self) -> np.ndarray:
        """The teacher's, `(num_rows, num_labels)`."""
        stored: np.ndarray = np.zeros((len(self), 0), np.float32)
        if self.index.num_labels:
            stored = self._whole(_RowReader(self.folder / "logits.bin", self.index.logits))
        return stored if self._answer is None else self._answer(stored, self._whole(self._vectors))

    def _whole(self, file: _RowReader) -> np.ndarray:
        return file.read(np.zeros(1, int), np.array([len(self)]))[0].numpy()

    @cached_property
    def _vectors(self) -> _RowReader:
        return _RowReader(self.folder / "vectors.bin", self.index.vectors)

    def vectors(self, rows: Numbers) -> Tensor:
        """The sentence vectors of some rows, `(sides * batch, hidden)`: all first texts before all second ones."""
        starts = np.asarray(rows)
        found = self._vectors.read(starts, np.ones(len(starts), int))[:, 0].float()
        return torch.cat(found.chunk(self.index.sides, dim=1))

    @property
    def live(self) -> bool:
        """Whether the teacher has to run for the hidden states."""
        return self.index.live

    @cached_property
    def rows(self) -> np.ndarray:
        """Numbers of the rows whose hidden states can be had; all, but for a disk budget."""
        return np.arange(len(self)) if self.live else np.flatnonzero(self._array("stored"))

    @cached_property
    def _hidden_offsets(self) -> np.ndarray:
        return hidden_offsets(self.lengths, self._array("stored"))

    @cached_property
    def _readers(self) -> dict[int, list[_RowReader]]:
        return {
            edge: [_RowReader(self.folder / f"{name}.bin", file) for name, file in self.index.of_edge(edge).items()]
            for edge in self.edges
        }

    @cached_property
    def _teacher(self) -> "PreTrainedModel":
        if self._load_teacher is None:
            raise PhaseError(f"{self.folder} holds no hidden states; open it with the teacher that gives them")
        return self._load_teacher().to(best_device())

    def hidden(self, edges: Sequence[int], rows: Numbers) -> list[Tensor]:
        """The teacher's hidden states at some edges.

        Args:
            edges: Layers.
            rows: Numbers among `rows`, `(batch,)`.

        Returns:
            `(batch, seq, hidden)` per edge in single precision, in the places of the joint sequence; zero at padding,
            or what a live teacher gives there.

        Raises:
            PhaseError: An edge is not stored.
        """
        if missing := sorted(set(edges) - set(self.edges)):
            raise PhaseError(
                f"{self.folder} holds the edges {self.edges}, not {missing[0]}; correct teacher.boundaries"
            )
        if self.live:
            return self._run_teacher(edges, rows)
        starts, counts = self._hidden_offsets[rows], self.lengths[rows]
        return [_decode(*(file.read(starts, counts) for file in self._readers[edge])) for edge in edges]

    @torch.no_grad()  # not in inference mode, whose tensors no gradient may pass
    def _run_teacher(self, edges: Sequence[int], rows: Numbers) -> list[Tensor]:
        batch = token_batch(self, rows, self.index.pad_token_id)
        if self.index.separate:
            states: Sequence[Tensor] = read_separately(self._teacher, batch)[0]
        else:
            states = self._teacher(**model_inputs(self._teacher, batch), output_hidden_states=True).hidden_states
        return [states[edge].float() for edge in edges]

    def sample(self, edges: Sequence[int], num_tokens: int, seed: int) -> list[Tensor]:
        """Hidden states `(num_tokens or fewer, hidden)` per edge, of random rows."""
        rows = np.random.default_rng(seed).permutation(self.rows)
        rows = rows[: 1 + np.searchsorted(np.cumsum(self.lengths[rows]), num_tokens)]
        parts: list[list[Tensor]] = []
        for first in range(0, len(rows), 256):
            some = rows[first : first + 256]
            _, mask = ragged_positions(self.offsets, some)
            parts.append([hidden[torch.from_numpy(mask)] for hidden in self.hidden(edges, some)])
        return [torch.cat(hidden)[:num_tokens] for hidden in zip(*parts, strict=True)]

    def variance(self, edge: int) -> float:
        """Of all entries of an edge's hidden states."""
        return self.index.variance[str(edge)]

    @cached_property
    def lengths(self) -> np.ndarray:
        """Word pieces of every row, `(num_rows,)`."""
        return np.diff(self.offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1


class FeatureDataset(torch.utils.data.Dataset[Batch]):
    """Padded batches out of a store.

    Args:
        store: The split.
        edges: Whose hidden states the batches have; of pairs read jointly then also `second`. Pairs read separately
            come as sequences of their own, see :func:`~search_space.heads.split_pairs`.
        tokens: Whether they have what a whole student needs: tokens, labels, the teacher's logits.
        vectors: Whether they have the teacher's sentence vectors besides.
        part: Of the data, copied into every batch.
        rows: The rows of the store that this dataset holds; None takes all that have what `edges` asks for.
    """

    def __init__(
        self, store: FeatureStore, edges: Sequence[int], *, tokens: bool = False, vectors: bool = False,
        part: str = "train", rows: Numbers | None = None,
    ) -> None:  # fmt: skip
        self.store = store
        self.edges = tuple(edges)
        self.with_tokens, self.with_vectors = tokens, vectors
        self.part = part
        everything = store.rows if self.edges else np.arange(len(store))
        self.rows = everything if rows is None else np.asarray(rows)
        self.read_ahead = bool(self.edges) and not store.live  # a live teacher takes all threads itself

    @property
    def lengths(self) -> np.ndarray:
        """Word pieces of every row of this dataset, `(num_rows,)`."""
        return self.store.lengths[self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, numbers: Numbers) -> Batch:
        """Some of this dataset's rows, by their numbers in it."""
        rows, store = self.rows[numbers], self.store
        if self.with_tokens:
            batch = token_batch(store, rows, store.index.pad_token_id)
            if store.logits.shape[1]:
                batch.logits = torch.from_numpy(store.logits[rows]).float()
            if self.with_vectors:
                batch.vectors = store.vectors(rows)
        else:
            batch = Batch(mask=torch.from_numpy(ragged_positions(store.offsets, rows)[1]))
        batch.part = self.part
        if self.edges:
            batch.hidden, batch.hidden_mask = store.hidden(self.edges, rows), batch.mask
            if store.has_pairs:
                positions, mask = ragged_positions(store.offsets, rows)
                types = store.token_types[positions]
                batch.second = torch.from_numpy((types == 1) & mask)
                batch.hidden_mask = torch.from_numpy((types < 2) & mask)
            if store.index.separate and batch.second is not None:
                *batch.hidden, batch.hidden_mask = split_pairs(batch.hidden_mask, batch.second, *batch.hidden)
                batch.second = None
            if not self.with_tokens:
                batch.mask = batch.hidden_mask
        return batch

    def __getitems__(self, numbers: list[int]) -> Batch:
        """Called by torch's loader."""
        return self.batch(numbers)
