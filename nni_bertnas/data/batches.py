"""Batches: what they hold, and how they are read ahead of the step."""

import bisect
import dataclasses
import inspect
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from nni_bertnas.data.samplers import LengthBatches, RankBatches, RankRows, StreamBatches

Numbers = Sequence[int] | np.ndarray  # of rows


@dataclasses.dataclass(kw_only=True)
class Batch:
    """Some rows, padded to the longest. What a reader of it does not ask for is None, or empty.

    Attributes:
        mask: `(batch, seq)`, bool, true at word pieces.
        input_ids: `(batch, seq)`.
        token_type_ids: `(batch, seq)`, 1 in the second text of a pair; 2 at what is of neither, see
            :func:`~nni_bertnas.data.tokens.behind_separator`.
        labels: `(batch,)`: class numbers or scores; see `rows.UNLABELLED`.
        logits: The teacher's, `(batch, num_labels)`.
        vectors: The teacher's sentence vectors, `(sides * batch, hidden)`, all first texts before all second ones.
        hidden: The teacher's hidden states at some edges, each `(batch, seq, hidden)` in single precision, or, of pairs
            read separately, `(2 * batch, side, hidden)`.
        entries: The hidden states at the entries of the blocks that end there; None where they were not read.
        hidden_mask: Which of them are of word pieces, `(batch, seq)` or `(2 * batch, side)`.
        second: `(batch, seq)`, bool, true in the second text of a pair; None where there are no pairs.
        part: Of the data, e.g. train or architecture, to tell loaders apart.
        whole: Rows of the batch over all ranks, where it is one rank's part of a batch; 0: it is a whole one.
        spare: Whether its row is another rank's, too, as the batch has fewer rows than there are ranks; it counts for
            nothing.
    """

    mask: Tensor
    input_ids: Tensor | None = None
    token_type_ids: Tensor | None = None
    labels: Tensor | None = None
    logits: Tensor | None = None
    vectors: Tensor | None = None
    hidden: list[Tensor] = dataclasses.field(default_factory=list)
    entries: Sequence[Tensor | None] = ()
    hidden_mask: Tensor | None = None
    second: Tensor | None = None
    part: str = "train"
    whole: int = 0
    spare: bool = False

    def __len__(self) -> int:
        return len(self.mask)

    @property
    def num_rows(self) -> int:
        """Rows of the batch over all ranks."""
        return self.whole or len(self)

    def to(self, device: torch.device) -> "Batch":
        """The batch on a device; itself where it is there."""
        if self.mask.device == device:
            return self
        moved: dict[str, Any] = {"hidden": [hidden.to(device) for hidden in self.hidden]}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                moved[field.name] = value.to(device)
        return dataclasses.replace(self, **moved)


def model_inputs(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """What a Hugging Face classifier takes of a batch, on its device; DistilBERT and RoBERTa know no token types."""
    assert batch.input_ids is not None and batch.token_type_ids is not None
    device = next(model.parameters()).device
    inputs = {"input_ids": batch.input_ids.to(device), "attention_mask": batch.mask.long().to(device)}
    known = getattr(getattr(model, "config", None), "type_vocab_size", 2)
    if known > 1 and "token_type_ids" in inspect.signature(model.forward).parameters:
        inputs["token_type_ids"] = batch.token_type_ids.clamp(max=1).to(device)
    return inputs


class _OfRank(torch.utils.data.Dataset[Batch]):
    """Gives a data set's batches by what :class:`RankBatches` gives."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    @property
    def read_ahead(self) -> bool:
        """As of the data set."""
        return bool(getattr(self.dataset, "read_ahead", False))

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, part: RankRows) -> Batch:
        batch: Batch = self.dataset.__getitems__(part.rows)
        return dataclasses.replace(batch, whole=part.whole, spare=part.spare)


def of_rank(loader: Any, rank: int, size: int) -> Any:
    """A loader of one rank's part of the batches of a loader that :func:`make_loader` or :func:`make_stream` made."""
    return _loader(_OfRank(loader.dataset), RankBatches(loader.batch_sampler, rank, size), ReadAhead)


def ragged_positions(offsets: np.ndarray, rows: Numbers) -> tuple[np.ndarray, np.ndarray]:
    """Where the elements of some rows of a ragged array stand, padded to the longest.

    Args:
        offsets: `(num_rows + 1,)`, start of every row.
        rows: Row numbers, `(batch,)`.

    Returns:
        Positions `(batch, seq)`, any valid one at padding, and the mask `(batch, seq)`, true at elements.
    """
    starts, lengths = offsets[rows], offsets[np.asarray(rows) + 1] - offsets[rows]
    steps = np.arange(lengths.max())
    mask = steps < lengths[:, None]
    return np.where(mask, starts[:, None] + steps, starts[:, None]), mask


class TokenDataset(torch.utils.data.Dataset[Batch]):
    """Tokenised rows held ragged; a batch of row numbers gives one padded batch.

    Args:
        tokens: Word pieces of all rows, one after another, `(num_tokens,)`.
        lengths: Word pieces of every row, `(num_rows,)`.
        labels: Class numbers as int, or scores as float.
        pad_token_id: Of the tokenizer.
        token_types: Of every word piece, as in :class:`Batch`; None for all 0.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        lengths: np.ndarray,
        labels: Sequence[float],
        pad_token_id: int = 0,
        token_types: np.ndarray | None = None,
    ) -> None:
        self.pad_token_id = pad_token_id
        self.offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        self.tokens = tokens
        self.token_types = np.zeros(len(tokens), np.uint8) if token_types is None else token_types
        regression = any(isinstance(label, float) for label in labels)
        self.labels = np.asarray(labels, np.float32 if regression else np.int64)

    @property
    def lengths(self) -> np.ndarray:
        """Word pieces of every row, `(num_rows,)`."""
        return np.diff(self.offsets)

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Numbers) -> "TokenDataset":
        """Some rows, in that order."""
        rows, pad = np.asarray(rows, int), self.pad_token_id
        at = [np.arange(self.offsets[row], self.offsets[row + 1]) for row in rows]
        places = np.concatenate(at) if at else np.zeros(0, np.int64)
        labels = self.labels[rows].tolist()
        return TokenDataset(self.tokens[places], self.lengths[rows], labels, pad, self.token_types[places])

    def batch(self, rows: Numbers) -> Batch:
        """The tokens and labels of some rows."""
        return token_batch(self, rows, self.pad_token_id)

    def __getitems__(self, rows: list[int]) -> Batch:
        """Called by torch's loader."""
        return self.batch(rows)


class Ragged(Protocol):
    """Tokenised rows, one after another."""

    @property
    def offsets(self) -> np.ndarray:
        """Start of every row, `(num_rows + 1,)`."""
        ...

    @property
    def tokens(self) -> np.ndarray:
        """Word pieces of all rows, `(num_tokens,)`."""
        ...

    @property
    def token_types(self) -> np.ndarray:
        """Of every word piece, `(num_tokens,)`."""
        ...

    @property
    def labels(self) -> np.ndarray:
        """`(num_rows,)`."""
        ...


def token_batch(ragged: Ragged, rows: Numbers, pad_token_id: int) -> Batch:
    """The tokens and labels of some rows, padded to the longest."""
    positions, mask = ragged_positions(ragged.offsets, rows)
    return Batch(
        mask=torch.from_numpy(mask),
        input_ids=torch.from_numpy(np.where(mask, ragged.tokens[positions], pad_token_id).astype(np.int64)),
        token_type_ids=torch.from_numpy(np.where(mask, ragged.token_types[positions], 0).astype(np.int64)),
        labels=torch.from_numpy(ragged.labels[rows]),
    )


class ReadAhead(torch.utils.data.DataLoader[Any]):
    """A loader whose thread fetches the next batch while the last is used, where the data set says `read_ahead`.

    A thread, as worker processes would take longer to start and to pass a batch than a batch takes.
    """

    def __iter__(self) -> Any:
        batches = super().__iter__()
        return _ahead(batches) if getattr(self.dataset, "read_ahead", False) else batches


def _ahead(batches: Iterator[Any]) -> Iterator[Any]:
    with ThreadPoolExecutor(1) as thread:
        following = thread.submit(next, batches, None)
        while (batch := following.result()) is not None:
            following = thread.submit(next, batches, None)
            yield batch


def make_loader(
    dataset: Any,
    batch_size: int,
    *,
    shuffle: bool,
    seed: int = 0,
    kind: Callable[..., Any] = ReadAhead,
) -> Any:
    """A loader of a dataset that has `lengths` and gives whole batches: rows of nearly equal length together.

    Args:
        dataset: A TokenDataset or FeatureDataset.
        batch_size: Rows.
        shuffle: Whether every epoch has a new order; otherwise rows go by length.
        seed: Of the order.
        kind: The loader's class; NNI wants its own.
    """
    return _loader(dataset, LengthBatches(dataset.lengths, batch_size, shuffle=shuffle, seed=seed), kind)


def make_stream(parts: Sequence[Any], batch_size: int, *, seed: int, epoch_rows: int | None) -> Any:
    """A loader over several data sets as in :func:`make_loader`; see :class:`StreamBatches`."""
    batches = StreamBatches([part.lengths for part in parts], batch_size, seed=seed, epoch_rows=epoch_rows)
    return _loader(_Parts(parts), batches, ReadAhead)


class _Parts(torch.utils.data.ConcatDataset[Any]):
    """Gives a batch out of the part in which its first row is, as all others are."""

    @property
    def read_ahead(self) -> bool:
        """Whether any part says so."""
        return any(getattr(part, "read_ahead", False) for part in self.datasets)

    def __getitems__(self, rows: list[int]) -> Batch:
        part = bisect.bisect_right(self.cumulative_sizes, rows[0])
        first = self.cumulative_sizes[part] - len(self.datasets[part])  # type: ignore[arg-type]
        return self.datasets[part].batch([row - first for row in rows])  # type: ignore[attr-defined]


def _loader(dataset: Any, batches: Any, kind: Callable[..., Any]) -> Any:
    return kind(dataset, batch_sampler=batches, collate_fn=_whole)


def _whole(batch: Any) -> Any:
    return batch
