"""Rows of the Hugging Face hub, or of a clone of a data set there."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from nni_bertnas.artifacts import file_fingerprint, fingerprint
from nni_bertnas.config import TaskSettings
from nni_bertnas.data.sources.library import other_records, read_table
from nni_bertnas.data.sources.source import Source

_GLUE = "nyu-mll/glue"


def _fingerprint(origin: str) -> str:
    """A hash of a data set's files where it is a folder; its name where it is on the hub."""
    files = sorted(file for file in Path(origin).rglob("*") if file.is_file() and ".git" not in file.parts)
    return fingerprint([file_fingerprint(file) for file in files]) if files else origin


def _loader(task: TaskSettings) -> tuple[Callable[[Any], Any], str]:
    origin = task.data_dir or _GLUE

    def load(datasets: Any) -> Any:
        # By its own lights the library serves its copy of a folder whose files have changed since.
        copies = Path(datasets.config.HF_DATASETS_CACHE) / "bertnas" / _fingerprint(origin)
        return datasets.load_dataset(origin, task.name, cache_dir=str(copies) if Path(origin).is_dir() else None)

    return load, origin


SOURCE = Source(
    read=lambda task, spec: read_table(*_loader(task), task, spec),
    fingerprint=lambda task, spec: [_fingerprint(task.data_dir or _GLUE)],
    other_split=lambda task, spec, split: other_records(*_loader(task), task, spec, split),
)
