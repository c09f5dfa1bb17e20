"""The store of teacher features: the teacher runs once over the data, and every phase reads what it gave.

A folder per split with ragged, memory-mapped arrays (no padding is stored): `tokens`, `offsets`, `labels`,
`logits`, and per block edge `hidden_<layer>` in half precision. A hidden state at an edge is Hugging Face's
`hidden_states[layer]`.
"""

import json
import logging
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.lib.format import open_memmap

from nni_bertnas.artifacts import RunDirectory, atomic_folder, fingerprint, read_result, write_result
from nni_bertnas.config import Study, resolve_boundaries
from nni_bertnas.data import (
    LengthBatches,
    TokenDataset,
    load_task,
    load_transfer,
    ragged_positions,
    token_batch,
    tokenize,
)
from nni_bertnas.errors import PhaseError
from nni_bertnas.scoring import model_inputs
from nni_bertnas.teacher import load_teacher, read_teacher, teacher_fingerprint
from nni_bertnas.training import best_device

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_log = logging.getLogger(__name__)
_BATCH_SIZE = 64


class FeatureStore:
    """One split of a store, opened for reading; arrays are mapped when first used.

    Args:
        folder: Of the split.

    Raises:
        PhaseError: The folder is missing or damaged.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        try:
            self.index: dict[str, Any] = json.loads((self.folder / "index.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise PhaseError(f"{self.folder} holds no features; make them with: bertnas features STUDY") from error
        self.edges: list[int] = self.index["edges"]
        self.hidden_size: int = self.index["hidden_size"]

    def _array(self, name: str) -> np.ndarray:
        path = self.folder / f"{name}.npy"
        try:
            return np.load(path, mmap_mode="r")
        except (OSError, ValueError, EOFError) as error:
            raise PhaseError(
                f"{path} is missing or damaged; make it anew with: bertnas run STUDY --force features"
            ) from error

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
        return np.asarray(self._array("logits"))

    @cached_property
    def _hidden(self) -> dict[int, np.ndarray]:
        return {edge: self._array(f"hidden_{edge}") for edge in self.edges}

    def hidden(self, edge: int) -> np.ndarray:
        """The teacher's hidden states at a block edge, `(num_tokens, hidden)`, half precision.

        Raises:
            PhaseError: The edge is not stored.
        """
        if edge not in self.edges:
            raise PhaseError(f"{self.folder} holds the edges {self.edges}, not {edge}; correct teacher.boundaries")
        return self._hidden[edge]

    def variance(self, edge: int) -> float:
        """Of all entries of an edge's hidden states."""
        return self.index["variance"][str(edge)]

    @property
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
        rows: The rows of the store that this dataset holds; None takes all.
    """

    def __init__(
        self, store: FeatureStore, edges: Sequence[int], *, tokens: bool = False, part: str = "train", rows: Any = None
    ) -> None:
        self.store = store
        self.edges = tuple(edges)
        self.with_tokens = tokens
        self.part = part
        self.rows = np.arange(len(store)) if rows is None else np.asarray(rows)

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
        batch["hidden"] = [torch.from_numpy(store.hidden(edge)[positions]).float() for edge in self.edges]
        if self.edges and store.has_pairs:
            batch["second"] = torch.from_numpy(store.token_types[positions] == 1) & batch["mask"]
        return batch


def features_fingerprint(study: Study, edges: Sequence[int]) -> str:
    """A hash of teacher, data and edges."""
    return fingerprint(teacher_fingerprint(study), study.task.transfer_rows, list(edges))


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
    """Build the store of train (transfer rows last) and dev unless it is there.

    Processes that start together build it once.

    Returns:
        The store's result: fingerprint, edges, seconds, bytes.

    Raises:
        PhaseError: There is no teacher.
    """
    run = RunDirectory(study)
    with run.lock("features"):
        result = find_features(study)
        if result is None:
            result = _build(study, run.features)
    return result


def open_features(study: Study, split: str) -> FeatureStore:
    """Open a split of the study's store; see :class:`FeatureStore`."""
    return FeatureStore(RunDirectory(study).features / split)


def _build(study: Study, target: Path) -> dict[str, Any]:
    start = time.perf_counter()
    teacher, tokenizer = load_teacher(study)
    teacher.to(best_device())
    edges = study_edges(study)
    splits = load_task(study.task).splits
    with atomic_folder(target) as folder:
        train = splits["train"]
        if study.task.transfer_rows:
            train += load_transfer(study.task)
        for split, rows in (("train", train), ("dev", splits["dev"])):
            write_split(folder / split, teacher, tokenize(tokenizer, rows, study.task.max_length), edges)
        size = sum(file.stat().st_size for file in folder.rglob("*.npy"))
        result = {
            "fingerprint": features_fingerprint(study, edges),
            "edges": edges,
            "num_bytes": size,
            "seconds": time.perf_counter() - start,
        }
        write_result(folder, study, result)
    _log.info("stored features at edges %s: %.0f MB in %.0f s", edges, size / 1e6, result["seconds"])
    return result


@torch.inference_mode()
def write_split(folder: Path, teacher: "PreTrainedModel", data: TokenDataset, edges: Sequence[int]) -> None:
    """Run a teacher in eval mode over tokenised rows and write one split of a store.

    Raises:
        PhaseError: A hidden state does not fit into half precision.
    """
    folder.mkdir(parents=True)
    size, num_tokens = teacher.config.hidden_size, int(data.offsets[-1])
    hidden = {
        edge: open_memmap(folder / f"hidden_{edge}.npy", mode="w+", dtype=np.float16, shape=(num_tokens, size))
        for edge in edges
    }
    logits = np.zeros((len(data), teacher.config.num_labels), np.float16)
    sums = {edge: np.zeros(2) for edge in edges}
    for rows in LengthBatches(data.lengths, _BATCH_SIZE, shuffle=False):
        batch = {name: tensor.to(teacher.device) for name, tensor in data.__getitems__(rows).items()}
        output = teacher(**model_inputs(teacher, batch), output_hidden_states=True)
        positions, mask = ragged_positions(data.offsets, rows)
        for edge in edges:
            values = output.hidden_states[edge][batch["mask"]].float().cpu().numpy()
            half = values.astype(np.float16)
            if not np.isfinite(half).all():
                raise PhaseError(f"the teacher's hidden state at layer {edge} does not fit into half precision")
            hidden[edge][positions[mask]] = half
            sums[edge] += values.sum(dtype=np.float64), np.square(values, dtype=np.float64).sum()
        logits[rows] = output.logits.float().cpu().numpy()
    for array in hidden.values():
        array.flush()
    for name, array in (
        ("offsets", data.offsets),
        ("tokens", data.tokens),
        ("token_types", data.token_types),
        ("labels", data.labels),
        ("logits", logits),
    ):
        np.save(folder / f"{name}.npy", array)
    count = num_tokens * size
    variance = {str(edge): float(s[1] / count - (s[0] / count) ** 2) for edge, s in sums.items()}
    index = {
        "edges": list(edges),
        "hidden_size": size,
        "num_rows": len(data),
        "num_tokens": num_tokens,
        "pad_token_id": data.pad_token_id,
        "variance": variance,
    }
    (folder / "index.json").write_text(json.dumps(index), encoding="utf-8")
