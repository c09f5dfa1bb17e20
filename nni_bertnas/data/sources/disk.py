"""Rows of a folder written by `save_to_disk` of the library `datasets`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from nni_bertnas.config import TaskSettings
from nni_bertnas.data.sources.library import other_records, read_table
from nni_bertnas.data.sources.source import Source, fingerprint_files
from nni_bertnas.data.tasks import TaskSpec
from nni_bertnas.errors import ConfigError


def _fingerprint(task: TaskSettings, spec: TaskSpec) -> list[str]:
    root = Path(task.data_dir or ".")
    files = {str(file.relative_to(root)): file for file in sorted(root.rglob("*.arrow"))}
    if not files:
        raise ConfigError(f"task.data_dir: {root} is no folder written by datasets' save_to_disk")
    return fingerprint_files(files)


def _loader(task: TaskSettings) -> tuple[Callable[[Any], Any], str]:
    origin = task.data_dir or ""
    return lambda datasets: datasets.load_from_disk(origin), origin


SOURCE = Source(
    read=lambda task, spec: read_table(*_loader(task), task, spec),
    fingerprint=_fingerprint,
    other_split=lambda task, spec, split: other_records(*_loader(task), task, spec, split),
    own_data=True,
    needs_folder=True,
)
