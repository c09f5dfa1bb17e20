"""The store of teacher features: the teacher runs once over the data, and every phase reads what it gave.

A folder per split, see :mod:`~nni_bertnas.store.writer`. A hidden state at an edge is Hugging Face's
`hidden_states[layer]`. All trials of a study on one machine share the files, and through them the page cache; on
shared storage any number of machines does.
"""

import json
import logging
import os
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from nni_bertnas.artifacts import RESULT, RunDirectory, fingerprint, read_result, write_result
from nni_bertnas.config import Study, resolve_boundaries, study_to_dict
from nni_bertnas.data.batches import load_task, load_transfer, ragged_positions, token_batch, tokenize
from nni_bertnas.errors import PhaseError
from nni_bertnas.store.writer import DTYPES, INDEX, LOGITS, SCALE, SplitWriter, decode, hidden_offsets, token_bytes
from nni_bertnas.training.metrics import model_inputs
from nni_bertnas.training.teacher import load_teacher, read_teacher, teacher_fingerprint
from nni_bertnas.training.trainer import best_device

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_log = logging.getLogger(__name__)
_CHECKED = "checked.json"  # size and time of every file when its checksums were last right
_SERIAL_ELEMENTS = 1 << 15  # up to so many torch does not parallelise
_SUBSET_SEED = 20


class _RowFile:
    """A file of rows of equal width, read in pieces.

    Not mapped into memory: the system maps a hundred times what is gathered (large folios), so that reading a store
    of 400,000 rows at random took its whole size in resident memory. One read call per piece is as fast.
    """

    def __init__(self, path: Path, width: int, dtype: torch.dtype, count: int) -> None:
        self._row_bytes, self._dtype = width * dtype.itemsize, dtype
        try:
            if path.stat().st_size != count * self._row_bytes:
                raise OSError
            self._file = path.open("rb", buffering=0)
        except OSError as error:
            raise PhaseError(f"{path} is missing or damaged; mend the store with: bertnas features STUDY") from error

    def read(self, starts: np.ndarray, counts: np.ndarray) -> Tensor:
        """Pieces that start at some row, `(batch,)`, of some rows each, `(batch,)`: `(batch, longest, width)`.

        What lies beyond a piece's end is zero.
        """
        buffer = np.zeros((len(starts), int(counts.max()) * self._row_bytes), np.uint8)
        number, size = self._file.fileno(), self._row_bytes
        for piece, start, stop in zip(buffer, (starts * size).tolist(), (counts * size).tolist(), strict=True):
            if os.preadv(number, [piece[:stop]], start) != stop:  # by position: threads may share the file
                raise PhaseError(f"{self._file.name} became shorter; mend the store with: bertnas features STUDY")
        return torch.from_numpy(buffer).view(self._dtype).view(len(starts), int(counts.max()), -1)


def _decode(values: Tensor, *scale: Tensor) -> Tensor:
    """As :func:`~nni_bertnas.store.writer.decode`, in parts so small that torch leaves them to the thread it is in.

    Batches are read ahead in a thread, and torch's threads of two such threads fight for the cores.
    """
    tensors = [tensor.flatten(0, 1).split(max(1, _SERIAL_ELEMENTS // values.shape[-1])) for tensor in (values, *scale)]
    return torch.cat([decode(*parts) for parts in zip(*tensors, strict=True)]).view(values.shape)


class FeatureStore:
    """One split of a store, opened for reading; files are opened when first used.

    Args:
        folder: Of the split.

    Raises:
        PhaseError: The folder is missing or damaged.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        try:
            self.index: dict[str, Any] = json.loads((self.folder / INDEX).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise PhaseError(f"{self.folder} holds no features; make them with: bertnas features STUDY") from error
        self.edges: list[int] = self.index["edges"]
        self.hidden_size: int = self.index["hidden_size"]

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
        """`(num_rows,)`; sources.UNLABELLED, or not-a-number for scores, where a row has none."""
        return np.asarray(self._array("labels"))

    @cached_property
    def logits(self) -> np.ndarray:
        """The teacher's, `(num_rows, num_labels)`."""
        file = _RowFile(self.folder / "logits.bin", self.index["num_labels"], LOGITS, len(self))
        return file.read(np.zeros(1, int), np.array([len(self)]))[0].numpy()

    @property
    def live(self) -> bool:
        """Whether the teacher has to run for the hidden states."""
        return bool(self.index.get("live"))

    @cached_property
    def rows(self) -> np.ndarray:
        """Numbers of the rows whose hidden states can be had; all, but for a disk budget."""
        return np.arange(len(self)) if self.live else np.flatnonzero(self._array("stored"))

    @cached_property
    def _hidden_offsets(self) -> np.ndarray:
        return hidden_offsets(self.lengths, self._array("stored"))

    @cached_property
    def _hidden(self) -> dict[str, _RowFile]:
        count, dtype = self.index["num_hidden_tokens"], self.index["dtype"]
        files = {}
        for edge in self.edges:
            files[f"hidden_{edge}"] = (self.hidden_size, DTYPES[dtype])
            if dtype == "int8":
                files[f"scale_{edge}"] = (1, SCALE)
        return {name: _RowFile(self.folder / f"{name}.bin", *shape, count) for name, shape in files.items()}

    @cached_property
    def _teacher(self) -> "PreTrainedModel":
        from transformers import AutoModelForSequenceClassification

        model = AutoModelForSequenceClassification.from_pretrained(self.folder.parent.parent / "teacher")
        return model.eval().requires_grad_(False).to(best_device())

    def hidden(self, edges: Sequence[int], rows: Any) -> list[Tensor]:
        """The teacher's hidden states at some edges.

        Args:
            edges: Layers.
            rows: Numbers among `rows`, `(batch,)`.

        Returns:
            `(batch, seq, hidden)` per edge in single precision; zero at padding, or what a live teacher gives there.

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
        return [_decode(*(file.read(starts, counts) for file in self._files(edge))) for edge in edges]

    def _files(self, edge: int) -> list[_RowFile]:
        return [self._hidden[name] for name in (f"hidden_{edge}", f"scale_{edge}") if name in self._hidden]

    @torch.no_grad()  # not in inference mode, whose tensors no gradient may pass
    def _run_teacher(self, edges: Sequence[int], rows: Any) -> list[Tensor]:
        batch = {
            name: value.to(best_device()) for name, value in token_batch(self, rows, self.index["pad_token_id"]).items()
        }
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
        return self.index["variance"][str(edge)]

    @cached_property
    def lengths(self) -> np.ndarray:
        """Word pieces of every row, `(num_rows,)`."""
        return np.diff(self.offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1


class FeatureDataset(torch.utils.data.Dataset[dict[str, Any]]):
    """Padded batches out of a store.

    Every batch has `hidden`, a list of `(batch, seq, hidden)` in single precision, one per edge asked for, and
    `mask` `(batch, seq)`, bool; of pairs also `second` `(batch, seq)`, true in the second text; with
    `tokens` also `input_ids` and `token_type_ids` `(batch, seq)`, `labels`
    `(batch,)` and the teacher's `logits` `(batch, num_labels)`.

    Args:
        store: The split.
        edges: Which hidden states.
        tokens: Whether the batches have what a whole student needs.
        part: Copied into every batch as `part`, to tell loaders apart.
        rows: The rows of the store that this dataset holds; None takes all that have what `edges` asks for.
    """

    def __init__(
        self, store: FeatureStore, edges: Sequence[int], *, tokens: bool = False, part: str = "train", rows: Any = None
    ) -> None:
        self.store = store
        self.edges = tuple(edges)
        self.with_tokens = tokens
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

    def __getitems__(self, numbers: list[int]) -> dict[str, Any]:
        """One batch, padded to its longest row."""
        rows, store = self.rows[numbers], self.store
        positions, mask = ragged_positions(store.offsets, rows)
        batch: dict[str, Any] = {"mask": torch.from_numpy(mask), "part": self.part}
        if self.with_tokens:
            batch |= token_batch(store, rows, store.index["pad_token_id"])
            batch["logits"] = torch.from_numpy(store.logits[rows]).float()
        batch["hidden"] = store.hidden(self.edges, rows) if self.edges else []
        if self.edges and store.has_pairs:
            batch["second"] = torch.from_numpy(store.token_types[positions] == 1) & batch["mask"]
        return batch


def features_fingerprint(study: Study, edges: Sequence[int]) -> str:
    """A hash of teacher, data, edges and how they are stored."""
    settings = study_to_dict(study)["features"]
    return fingerprint(teacher_fingerprint(study), study.task.transfer_rows, list(edges), settings)


def study_edges(study: Study) -> list[int]:
    """The layers at which the study's teacher is cut, read from the saved teacher.

    Raises:
        PhaseError: There is no teacher yet.
    """
    return resolve_boundaries(study.teacher, read_teacher(study)["num_layers"])


def find_features(study: Study) -> dict[str, Any] | None:
    """The result of the study's store, if it is there and still fits."""
    return read_result(RunDirectory(study).features, features_fingerprint(study, study_edges(study)))


def ensure_features(study: Study) -> dict[str, Any]:
    """Build the store of train (transfer rows last) and dev unless it is there and its files are as they were.

    Processes that start together build it once. Shards that are damaged, or that an interrupted build left out, are
    made anew, and they alone.

    Returns:
        The store's result: fingerprint, edges, seconds, bytes.

    Raises:
        PhaseError: There is no teacher.
    """
    run = RunDirectory(study)
    with run.lock("features"):
        result = find_features(study)
        if result is None or _stamps(run.features) != _read_stamps(run.features):
            result = _build(study, run.features)
    return result


def open_features(study: Study, split: str) -> FeatureStore:
    """Open a split of the study's store; see :class:`FeatureStore`."""
    return FeatureStore(RunDirectory(study).features / split)


def _stamps(folder: Path) -> dict[str, list[int]]:
    """Size and time of every file of a store."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name != _CHECKED)
    stats = {str(file.relative_to(folder)): file.stat() for file in files}
    return {name: [status.st_size, status.st_mtime_ns] for name, status in stats.items()}


def _read_stamps(folder: Path) -> Any:
    try:
        return json.loads((folder / _CHECKED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _build(study: Study, folder: Path) -> dict[str, Any]:
    start = time.perf_counter()
    teacher, tokenizer = load_teacher(study)
    teacher.to(best_device())
    edges, config = study_edges(study), study.features
    expected = features_fingerprint(study, edges)
    splits = load_task(study.task).splits
    train = splits["train"]
    if study.task.transfer_rows:
        train += load_transfer(study.task)
    data = {"train": tokenize(tokenizer, train, study.task.max_length)}
    data["dev"] = tokenize(tokenizer, splits["dev"], study.task.max_length)
    size = token_bytes(edges, teacher.config.hidden_size, config.dtype)
    stored = _within_budget(study, size, data["train"].lengths, int(data["dev"].offsets[-1]))
    before = read_result(folder) or {}
    (folder / RESULT).unlink(missing_ok=True)
    for split, rows in data.items():
        index = SplitWriter(
            folder / split, teacher, rows, edges, config.dtype, stored if split == "train" else None
        ).write()
        if split == "train" and not stored.any():
            (folder / split / INDEX).write_text(json.dumps({**index, "live": True}), encoding="utf-8")
    result: dict[str, Any] = {
        "fingerprint": expected,
        "edges": edges,
        "num_bytes": sum(file.stat().st_size for file in folder.rglob("*.*")),
        "stored_rows": int(stored.sum()),
        "seconds": time.perf_counter() - start,
    }
    if before.get("fingerprint") == expected:
        result["seconds"] = before["seconds"]  # of the build, not of the repair
    write_result(folder, study, result)
    (folder / _CHECKED).write_text(json.dumps(_stamps(folder)), encoding="utf-8")
    _log.info("stored features at edges %s: %.0f MB in %.0f s", edges, result["num_bytes"] / 1e6, result["seconds"])
    return result


def _within_budget(study: Study, token_size: int, lengths: np.ndarray, dev_tokens: int) -> np.ndarray:
    """Which rows of train have their hidden states stored, `(num_rows,)`: all, a random part, or none."""
    config = study.features
    everything: np.ndarray = np.ones(len(lengths), bool)
    if config.max_gigabytes is None:
        return everything
    tokens = int(config.max_gigabytes * 1e9 / token_size) - dev_tokens
    if lengths.sum() <= tokens:
        return everything
    order = np.random.default_rng(_SUBSET_SEED).permutation(len(lengths))
    count = int(np.searchsorted(np.cumsum(lengths[order]), max(0, tokens), side="right"))
    whole = (int(lengths.sum()) + dev_tokens) * token_size / 1e9
    if config.over_budget == "live":
        _log.warning(
            "the features of all rows would take %.2f GB, over features.max_gigabytes %g: those of train are not "
            "stored, the teacher runs live", whole, config.max_gigabytes,
        )  # fmt: skip
        return ~everything
    if count < 16:
        least = (dev_tokens + np.sort(lengths)[-16:].sum()) * token_size / 1e9
        raise PhaseError(
            f"features.max_gigabytes {config.max_gigabytes:g} is too little for dev and 16 rows of train; set it to "
            f"{least:.2g} or more, or over_budget to live"
        )
    _log.warning(
        "the features of all rows would take %.2f GB, over features.max_gigabytes %g: those of %d of %d rows of train "
        "are stored, always the same", whole, config.max_gigabytes, count, len(lengths),
    )  # fmt: skip
    stored = ~everything
    stored[order[:count]] = True
    return stored
