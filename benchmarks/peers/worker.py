"""Fits a system, or answers from a fitted one, in a process of its own.

    python -m peers.worker fit MODULE JOB FOLDER
    python -m peers.worker serve MODULE JOB FOLDER

`fit` writes FOLDER and says what it took. `serve` reads lines of JSON: {"answer": null} writes the answers for the
job's test into FOLDER.npy; {"time": [[row, …], …]} gives the milliseconds of every batch, with and without the making
of its inputs.
"""

import importlib
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np


@dataclass(frozen=True)
class Rows:
    """Texts, the second ones of pairs, labels."""

    texts: list[str]
    pairs: list[str] | None
    labels: list[float]

    def take(self, numbers: list[int]) -> "Rows":
        """Some of them."""
        pairs = None if self.pairs is None else [self.pairs[number] for number in numbers]
        return Rows([self.texts[number] for number in numbers], pairs, [self.labels[number] for number in numbers])


class Job:
    """What a system is asked for.

    Args:
        folder: With job.json.

    Attributes:
        kind: `class` or `score`.
        num_labels: Classes; 1 of a score.
        encoder: Folder of the pretrained encoder.
        options: Of the system.
        seed: Of its training.
        train: Rows to learn from.
        dev: Rows to choose by.
        test: Rows that are answered.
        said: All that job.json says.
    """

    def __init__(self, folder: Path, options: dict[str, Any], seed: int) -> None:
        self.said: dict[str, Any] = json.loads((folder / "job.json").read_text(encoding="utf-8"))
        self.kind, self.num_labels, self.encoder = (self.said[name] for name in ("kind", "num_labels", "encoder"))
        self.options, self.seed = options, seed
        self.train, self.dev, self.test = (Rows(**self.said["rows"][split]) for split in ("train", "dev", "test"))

    @property
    def classes(self) -> bool:
        """Whether rows have classes and not scores."""
        return bool(self.kind == "class")


class Model(Protocol):
    """A fitted system."""

    def encode(self, texts: list[str], pairs: list[str] | None) -> Any:
        """What is made of the texts before the model proper reads them."""
        ...

    def answer(self, encoded: Any) -> np.ndarray:
        """`(rows, labels)` probabilities or `(rows, 1)` scores."""
        ...


def _milliseconds(model: Model, rows: Rows) -> tuple[float, float]:
    start = time.perf_counter()
    encoded = model.encode(rows.texts, rows.pairs)
    between = time.perf_counter()
    model.answer(encoded)
    end = time.perf_counter()
    return 1000 * (end - start), 1000 * (end - between)


def _serve(job: Job, model: Model, folder: Path, said: dict[str, Any]) -> Any:
    if "time" in said:
        return [_milliseconds(model, job.test.take(numbers)) for numbers in said["time"]]
    chunks = [list(range(first, min(first + 32, len(job.test.texts)))) for first in range(0, len(job.test.texts), 32)]
    found = []
    for numbers in chunks:
        rows = job.test.take(numbers)
        found.append(model.answer(model.encode(rows.texts, rows.pairs)))
    np.save(folder.with_suffix(".npy"), np.concatenate(found).astype(np.float64))
    return len(job.test.texts)


def main() -> None:
    """Read the command line, do it."""
    what, module, place, target, options, seed = sys.argv[1:]
    peer, folder = importlib.import_module(f"peers.{module}"), Path(target)
    job = Job(Path(place), json.loads(options), int(seed))
    if what == "fit":
        folder.mkdir(parents=True)
        start = time.perf_counter()
        peer.fit(job, folder)
        print(json.dumps({"fit_seconds": time.perf_counter() - start}), flush=True)
        return
    out, sys.stdout = sys.stdout, sys.stderr  # where libraries may print, too
    start = time.perf_counter()
    model = peer.load(job, folder)
    print(json.dumps({"load_seconds": time.perf_counter() - start}), file=out, flush=True)
    for line in sys.stdin:
        print(json.dumps(_serve(job, model, folder, json.loads(line))), file=out, flush=True)


if __name__ == "__main__":
    main()
