"""Which rows a batch is of: rows of nearly equal length, in an order that a training can go on with."""

import dataclasses
import inspect
import itertools
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Sampler


class LengthBatches(Sampler[list[int]]):
    """Batches of row numbers of nearly equal length, in a new order every epoch.

    Rows are shuffled, cut into chunks of `CHUNK` batches, sorted by length within a chunk, and the batches
    shuffled: little padding, nearly random batches. Without shuffling, rows go by length.
    """

    CHUNK = 50

    def __init__(self, lengths: np.ndarray, batch_size: int, *, shuffle: bool, seed: int = 0) -> None:
        self.lengths = lengths
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.generator = np.random.default_rng(seed)

    def state_dict(self) -> dict[str, Any]:
        """Where the orders of the epochs stand, between two of them."""
        return dict(self.generator.bit_generator.state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the next epoch's order."""
        self.generator.bit_generator.state = state

    def __len__(self) -> int:
        return -(-len(self.lengths) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        count, chunk = len(self.lengths), self.batch_size * self.CHUNK
        if not self.shuffle:
            order = np.argsort(self.lengths, kind="stable")
            yield from (order[i : i + self.batch_size].tolist() for i in range(0, count, self.batch_size))
            return
        order = self.generator.permutation(count)
        for start in range(0, count, chunk):
            part = order[start : start + chunk]
            order[start : start + chunk] = part[np.argsort(self.lengths[part], kind="stable")]
        batches = [order[i : i + self.batch_size].tolist() for i in range(0, count, self.batch_size)]
        for index in self.generator.permutation(len(batches)):
            yield batches[index]


class StreamBatches(Sampler[list[int]]):
    """Length batches of several parts of one data set, each batch out of one part, as an endless shuffled stream.

    Args:
        parts: Lengths of every part's rows; a row's number counts from the first part on.
        batch_size: Rows.
        seed: Of the order.
        epoch_rows: How much of the stream is an epoch; None: as many batches as there are.
    """

    def __init__(
        self, parts: Sequence[np.ndarray], batch_size: int, *, seed: int, epoch_rows: int | None = None
    ) -> None:
        self.parts = [LengthBatches(lengths, batch_size, shuffle=True, seed=seed) for lengths in parts]
        self.generator = np.random.default_rng(seed)
        self.count = sum(map(len, self.parts)) if epoch_rows is None else -(-epoch_rows // batch_size)
        self._begun, self._taken, self._skipped = self._orders(), 0, 0
        self.stream = self._stream()

    def _orders(self) -> dict[str, Any]:
        return {"own": self.generator.bit_generator.state, "parts": [part.state_dict() for part in self.parts]}

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands: what its present round began with, and how many batches of that are gone."""
        return {**self._begun, "taken": self._taken + self._skipped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the stream."""
        self.generator.bit_generator.state = state["own"]
        for part, orders in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(orders)
        self._begun, self._taken, self._skipped = self._orders(), 0, state["taken"]
        self.stream = self._stream()

    def _stream(self) -> Generator[list[int], None, None]:
        firsts = np.cumsum([0, *(len(part.lengths) for part in self.parts)])
        while True:
            self._begun = self._orders()
            batches = [
                [first + row for row in batch]
                for part, first in zip(self.parts, firsts.tolist(), strict=False)
                for batch in part
            ]
            if len(self.parts) > 1:
                batches = [batches[index] for index in self.generator.permutation(len(batches))]
            self._taken, self._skipped = self._skipped, 0
            for batch in batches[self._taken :]:
                self._taken += 1
                yield batch

    def __getstate__(self) -> dict[str, Any]:
        assert inspect.getgeneratorstate(self.stream) == inspect.GEN_CREATED, "a copy would begin anew"
        return {name: value for name, value in self.__dict__.items() if name != "stream"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self.stream = self._stream()

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[list[int]]:
        return itertools.islice(self.stream, self.count)


@dataclasses.dataclass(frozen=True)
class RankRows:
    """One rank's rows of a batch; see :class:`~nni_bertnas.data.batches.Batch`."""

    rows: list[int]
    whole: int
    spare: bool


class RankBatches(Sampler[RankRows]):
    """One rank's part of every batch of a sampler: together the ranks have the very batches that one alone would have.

    Every so many-th row, so that rows of equal length go to all ranks. The samplers of all ranks must have one seed.

    Args:
        batches: Gives whole batches of row numbers.
        rank: Number of the rank.
        size: Ranks in all.
    """

    def __init__(self, batches: Any, rank: int, size: int) -> None:
        self.batches, self.rank, self.size = batches, rank, size

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[RankRows]:
        for rows in self.batches:
            own = rows[self.rank :: self.size]
            yield RankRows(own or rows[:1], len(rows), not own)
