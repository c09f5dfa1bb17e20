"""Rows of a folder written by `save_to_disk` of the library `datasets`."""

from pathlib import Path

from nni_bertnas.config import TaskSettings
from nni_bertnas.data.sources.library import read_table
from nni_bertnas.data.sources.source import Source, Table, fingerprint_files
from nni_bertnas.data.tasks import TaskSpec
from nni_bertnas.errors import ConfigError


def _fingerprint(task: TaskSettings, spec: TaskSpec) -> list[str]:
    root = Path(task.data_dir or ".")
    files = {str(file.relative_to(root)): file for file in sorted(root.rglob("*.arrow"))}
    if not files:
        raise ConfigError(f"task.data_dir: {root} is no folder written by datasets' save_to_disk")
    return fingerprint_files(files)


def _read(task: TaskSettings, spec: TaskSpec) -> Table:
    origin = task.data_dir or ""
    return read_table(lambda datasets: datasets.load_from_disk(origin), origin, task, spec)


SOURCE = Source(read=_read, fingerprint=_fingerprint, own_data=True, needs_folder=True)
