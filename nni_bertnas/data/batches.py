"""Rows of a task: read, split, tokenised once, batched by length."""

import bisect
import csv
import itertools
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from nni_bertnas.artifacts import fingerprint
from nni_bertnas.config import TaskConfig, task_to_dict
from nni_bertnas.data.sources import UNLABELLED, Rows, read_splits, source_files, source_fingerprint
from nni_bertnas.data.tasks import task_spec
from nni_bertnas.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TOKENIZER_ROWS = 10_000  # at a time
_SPLIT_SEED = 20  # fixed for good: scores of different studies stay comparable
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TaskData:
    """A task's rows, ready to be learnt from.

    Attributes:
        label_names: In the order of their numbers; empty for regression.
        splits: train, dev, and one or more that are read only at the end.
    """

    label_names: tuple[str, ...]
    splits: dict[str, Rows]

    @property
    def final_splits(self) -> list[str]:
        """The splits that no training and no choice looks at."""
        return [name for name in self.splits if name not in ("train", "dev")]


def data_fingerprint(task: TaskConfig) -> str:
    """A hash of the task's settings and the content of its files."""
    settings = task_to_dict(task)
    for name in ("data_dir", "transfer_rows"):  # the place does not matter, nor what only the student sees
        del settings[name]
    if task.custom is not None:
        for name in ("train", "dev", "test"):
            del settings["custom"][name]
    return fingerprint(settings, _SPLIT_SEED, source_fingerprint(task))


def load_transfer(task: TaskConfig) -> Rows:
    """Unlabelled text of the task's domain, labelled by the teacher alone: what a student can learn from beside train.

    For rotten_tomatoes, sentences of 8 to 40 words out of the package's IMDB reviews, whose own labels are not read;
    none that stands in the task's rows. A fixed choice: fewer rows are a part of more.
    """
    if not task.transfer_rows:
        return Rows([], [])
    with source_files(task)["train"].open(encoding="utf-8", newline="") as file:
        reviews = list(csv.DictReader(file))
    own = {row["text"] for row in reviews if row["source"] == "rotten_tomatoes"}
    sentences = {
        sentence: None  # a dict keeps the order that a set would lose
        for row in reviews
        if row["source"] == "imdb"
        for sentence in re.split(r"(?<=[.!?])\s+", row["text"].replace("<br />", " ").lower())
        if 8 <= len(sentence.split()) <= 40 and sentence not in own
    }
    if task.transfer_rows > len(sentences):
        raise ConfigError(f"task.transfer_rows must be at most {len(sentences)}, the sentences there are")
    everything = Rows(list(sentences), [UNLABELLED] * len(sentences))
    return everything.take(np.random.default_rng(_SPLIT_SEED).permutation(len(sentences))[: task.transfer_rows])


def load_task(task: TaskConfig) -> TaskData:
    """Read a task and split it, the same way every time, stratified by label.

    rotten_tomatoes: 6 : 1 : 1 train, dev, test. GLUE: its labelled dev files keep their name, `glue_dev`, and are not
    looked at before the end, as its test files have no labels; our dev is as many rows, at most about a tenth, held
    out of its train file. Own data: what is not given as a file, of dev and test, is a tenth of train each.

    Raises:
        ConfigError: With the file and line of the first bad row.
    """
    if "train" not in task_spec(task).hub_splits:
        raise ConfigError(f"task.name: {task.name} has no training rows; train on mnli, and use bertnas predict")
    names, found = read_splits(task)
    train = found.pop("train")
    if task.source == "package":
        train, rest = _split(train, names, 0.25)
        found["dev"], found["test"] = _split(rest, names, 0.5)
    elif task.custom is not None:
        share = 0.1
        for name in ("test", "dev"):
            if name not in found:
                train, found[name] = _split(train, names, share)
                share = 1 / 9  # of the nine tenths left
    else:
        first = len(next(iter(found.values())))
        train, found["dev"] = _split(train, names, min(0.1, first / len(train)))
    if task.max_train_rows is not None and task.max_train_rows < len(train):
        _, train = _split(train, names, task.max_train_rows / len(train))
    dev = found.pop("dev")
    return TaskData(names, {"train": train, "dev": dev, **found})


def _split(rows: Rows, names: Sequence[str], share: float) -> tuple[Rows, Rows]:
    from sklearn.model_selection import train_test_split

    counts = Counter(rows.labels)
    if names and (rare := [names[int(label)] for label, count in counts.items() if count < 2]):
        raise ConfigError(
            f"task: the label(s) {', '.join(rare)} have one row in train, which cannot be both learnt and tested; "
            "add rows, join labels, or give the dev and test splits as files"
        )
    indices = np.arange(len(rows))
    try:
        first, second = train_test_split(
            indices, test_size=share, stratify=rows.labels if names else None, random_state=_SPLIT_SEED
        )
    except ValueError as error:
        raise ConfigError(
            f"task: {len(rows)} rows with {len(counts)} labels are too few to hold out {share:.0%} ({error}); add rows "
            "or give the dev and test splits as files"
        ) from None
    return rows.take(first), rows.take(second)


def tokenize(tokenizer: "PreTrainedTokenizerBase", rows: Rows, max_length: int) -> "TokenDataset":
    """The rows as word pieces, special tokens included, cut to `max_length`; logs how many were cut.

    Of a pair, the longer text is cut first.
    """
    texts = [rows.texts] if rows.pairs is None else [rows.texts, rows.pairs]
    parts: list[tuple[np.ndarray, ...]] = []  # flat, as an array per row takes more than what it holds
    cut = 0
    for first in range(0, len(rows), _TOKENIZER_ROWS):  # a tokenizer's output takes kilobytes a row
        encoded = tokenizer(
            *(side[first : first + _TOKENIZER_ROWS] for side in texts),
            truncation="longest_first",
            max_length=max_length,
            return_attention_mask=False,
            return_token_type_ids=True,
        )
        cut += count_cut(encoded, max_length)
        ids, types = encoded["input_ids"], encoded["token_type_ids"]
        parts.append((_flat(ids, np.int32), np.array([len(row) for row in ids]), _flat(types, np.uint8)))
    if cut:
        _log.warning("%d of %d texts were cut to task.max_length = %d word pieces", cut, len(rows), max_length)
    tokens, lengths, token_types = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return TokenDataset(tokens, lengths, rows.labels, tokenizer.pad_token_id or 0, token_types=token_types)


def _flat(rows: Iterable[Iterable[int]], dtype: Any) -> np.ndarray:
    return np.fromiter(itertools.chain.from_iterable(rows), dtype)


def count_cut(encoded: Any, max_length: int) -> int:
    """How many rows of a tokenizer's output were cut; a slow tokenizer counts those that are just full too."""
    if encoded.encodings:
        return sum(bool(encoding.overflowing) for encoding in encoded.encodings)
    return sum(len(ids) == max_length for ids in encoded["input_ids"])


class LengthBatches(torch.utils.data.Sampler[list[int]]):
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


class StreamBatches(torch.utils.data.Sampler[list[int]]):
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
        self.stream = self._stream()

    def _stream(self) -> Iterator[list[int]]:
        firsts = np.cumsum([0, *(len(part.lengths) for part in self.parts)])
        while True:
            batches = [
                [first + row for row in batch]
                for part, first in zip(self.parts, firsts.tolist(), strict=False)
                for batch in part
            ]
            if len(self.parts) > 1:
                batches = [batches[index] for index in self.generator.permutation(len(batches))]
            yield from batches

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[list[int]]:
        return itertools.islice(self.stream, self.count)


def ragged_positions(offsets: np.ndarray, rows: Any) -> tuple[np.ndarray, np.ndarray]:
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


class TokenDataset(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Tokenised rows held ragged; a batch of row numbers gives one padded batch.

    Args:
        tokens: Word pieces of all rows, one after another, `(num_tokens,)`.
        lengths: Word pieces of every row, `(num_rows,)`.
        labels: Class numbers as int, or scores as float.
        pad_token_id: Of the tokenizer.
        token_types: Of every word piece, 0 for the first text and 1 for the second; None for all 0.
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

    def __getitems__(self, rows: list[int]) -> dict[str, Tensor]:
        """input_ids, token_type_ids and mask `(batch, seq)`, labels `(batch,)`."""
        return token_batch(self, rows, self.pad_token_id)


def token_batch(ragged: Any, rows: Any, pad_token_id: int) -> dict[str, Tensor]:
    """One padded batch out of what has `offsets`, `tokens`, `token_types` and `labels`."""
    positions, mask = ragged_positions(ragged.offsets, rows)
    return {
        "input_ids": torch.from_numpy(np.where(mask, ragged.tokens[positions], pad_token_id).astype(np.int64)),
        "token_type_ids": torch.from_numpy(np.where(mask, ragged.token_types[positions], 0).astype(np.int64)),
        "mask": torch.from_numpy(mask),
        "labels": torch.from_numpy(ragged.labels[rows]),
    }


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

    def __getitems__(self, rows: list[int]) -> Any:
        part = bisect.bisect_right(self.cumulative_sizes, rows[0])
        first = self.cumulative_sizes[part] - len(self.datasets[part])  # type: ignore[arg-type]
        return self.datasets[part].__getitems__([row - first for row in rows])  # type: ignore[attr-defined]


def _loader(dataset: Any, batches: Any, kind: Callable[..., Any]) -> Any:
    return kind(dataset, batch_sampler=batches, collate_fn=_whole)


def _whole(batch: Any) -> Any:
    return batch
