"""How fast saved and exported models are beside each other on this machine."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nni_bertnas.data.rows import Rows
from nni_bertnas.deploy.predict import load_predictor
from nni_bertnas.errors import ConfigError
from nni_bertnas.runtime.classifier import Classifier
from nni_bertnas.runtime.engines import ENGINES
from nni_bertnas.runtime.manifest import FILE
from nni_bertnas.student.cost import model_call

BATCHES, LENGTHS = (1, 8, 32), (16, 64, 128)
REAL = "real"  # of rows of the task, one at a time, their words cut into pieces within the time
_WEIGHTS = (".safetensors", ".bin", ".onnx", ".ts", ".pt", ".xml")
_ROUNDS = 5
_SECONDS = 0.2  # of a model and shape in a round, about
_PASSES = 20  # in a round, at most

# What a process that answers one text takes; the same code as a user's.
_ONE_ANSWER = """
import sys, time
start = time.perf_counter()
sys.path.insert(0, {place!r})
{opened}
model({texts!r})
seconds = time.perf_counter() - start
status = open("/proc/self/status").read().split("VmRSS:")[1].split()[0] if sys.platform == "linux" else 0
print(seconds, status)
"""
_EXPORTED = "from bertnas_runtime import Classifier; c = Classifier({folder!r}); model = lambda texts: c(*texts)"
_SAVED = """from transformers import AutoModelForSequenceClassification as Auto, AutoTokenizer
m, t = Auto.from_pretrained({folder!r}, trust_remote_code=True), AutoTokenizer.from_pretrained({folder!r})
model = lambda texts: m(**t(*texts, return_tensors="pt"))"""


@dataclass(frozen=True)
class Speed:
    """Of one model.

    Attributes:
        name: The last two names of its folder.
        engine: What runs it.
        size_mb: Of its weights.
        first_answer_s: From the start of a fresh process's imports to its first answer.
        resident_mb: Memory of that process then; 0 where the system does not tell.
        passes: By `batch x length`, or `REAL`: `p50_ms`, `p95_ms` and `rows_per_s`.
    """

    name: str
    engine: str
    size_mb: float
    first_answer_s: float
    resident_mb: float
    passes: dict[str, dict[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Opened:
    engine: str
    longest: int
    make: Callable[[int, int], Callable[[], Any]]  # of batch and length: one pass
    answer: Callable[[Rows], Any]


def bench(folders: Sequence[Path], rows: Rows | None, *, threads: int, pairs: bool) -> list[Speed]:
    """Measure models in turns, so that a machine whose speed drifts treats them alike.

    Args:
        folders: Of saved or exported models.
        rows: Of the task; None leaves real lengths out.
        threads: Of every pass.
        pairs: Whether the second half of every row is a second text.

    Raises:
        ConfigError: A folder holds no model.
    """
    kept = torch.get_num_threads()
    torch.set_num_threads(threads)
    models = [_open(folder, threads, pairs) for folder in folders]
    example = ("first", "second") if pairs else ("first",)
    speeds = [
        Speed("/".join(folder.resolve().parts[-2:]), model.engine, _size_mb(folder), *_one_answer(folder, example))
        for folder, model in zip(folders, models, strict=True)
    ]
    for batch in BATCHES:
        for length in LENGTHS:
            fitting = [number for number, model in enumerate(models) if length <= model.longest]
            calls = {number: models[number].make(batch, length) for number in fitting}
            for number, times in _in_turns(calls).items():
                speeds[number].passes[f"{batch} x {length}"] = _figures(times, batch)
    if rows is not None:
        for number, times in _real(models, rows).items():
            speeds[number].passes[REAL] = _figures(times, 1)
    torch.set_num_threads(kept)
    return speeds


def _open(folder: Path, threads: int, pairs: bool) -> _Opened:
    if (folder / FILE).is_file():
        classifier = Classifier(folder, threads=threads)
        return _Opened(
            ENGINES[Path(classifier.manifest.model).suffix].name,
            classifier.manifest.max_length,
            lambda batch, length: classifier.one_pass(batch, length, pairs),
            lambda rows: classifier.probabilities(rows.texts, rows.pairs),
        )
    predictor = load_predictor(folder)
    predictor.model.to("cpu")

    def make(batch: int, length: int) -> Callable[[], Any]:
        call = model_call(predictor.model, [length], pairs=pairs, batch=batch)
        return lambda: call(length)

    return _Opened("PyTorch", predictor.max_length, make, predictor.probabilities)


@torch.inference_mode()
def _in_turns(calls: Mapping[int, Callable[[], Any]]) -> dict[int, list[float]]:
    """Milliseconds of every pass, some in a row of which the first is not counted."""
    times: dict[int, list[float]] = {number: [] for number in calls}
    for _ in range(_ROUNDS):
        for number, call in calls.items():
            first = _milliseconds(call)
            for _ in range(max(1, min(_PASSES, int(_SECONDS * 1000 / first)))):
                times[number].append(_milliseconds(call))
    return times


def _real(models: Sequence[_Opened], rows: Rows) -> dict[int, list[float]]:
    times: dict[int, list[float]] = {number: [] for number in range(len(models))}
    for some in rows.chunks(_PASSES):
        for number, model in enumerate(models):
            model.answer(some.take([0]))
            times[number] += [_milliseconds(partial(model.answer, some.take([row]))) for row in range(len(some))]
    return times


def _milliseconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1000


def _figures(times: Sequence[float], batch: int) -> dict[str, float]:
    middle, high = np.percentile(times, [50, 95])
    return {"p50_ms": float(middle), "p95_ms": float(high), "rows_per_s": 1000 * batch / float(middle)}


def _size_mb(folder: Path) -> float:
    files = (file for file in folder.iterdir() if file.suffix in _WEIGHTS)
    return sum(file.stat().st_size for file in files) / 1e6


def _one_answer(folder: Path, example: Sequence[str]) -> tuple[float, float]:
    """Seconds from the imports of a fresh process to its first answer, and its megabytes of memory then."""
    own, exported = str(folder.resolve()), (folder / FILE).is_file()
    opened = (_EXPORTED if exported else _SAVED).format(folder=own)
    script = _ONE_ANSWER.format(place=own if exported else "", opened=opened, texts=tuple(example))
    done = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True
    )
    if done.returncode:
        raise ConfigError(f"{folder} gave no answer in a process of its own: {done.stderr.strip().splitlines()[-1]}")
    seconds, kilobytes = done.stdout.split()[-2:]
    return float(seconds), int(kilobytes) / 1000


def to_json(speeds: Sequence[Speed], machine: Mapping[str, Any], threads: int) -> str:
    """All figures, and where they were measured."""
    return json.dumps({"machine": machine, "threads": threads, "models": [asdict(one) for one in speeds]}, indent=1)
