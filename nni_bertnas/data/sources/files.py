"""Rows of the user's own files: CSV, TSV, JSON Lines, Parquet."""

from collections.abc import Mapping
from pathlib import Path

from nni_bertnas.config import TaskSettings
from nni_bertnas.data.readers import read_records
from nni_bertnas.data.sources.source import Source, Table, check_files, fingerprint_files
from nni_bertnas.data.tasks import TaskSpec


def _files(task: TaskSettings) -> Mapping[str, Path]:
    assert task.custom is not None
    named = {"train": task.custom.train, "dev": task.custom.dev, "test": task.custom.test}
    return check_files({split: Path(name) for split, name in named.items() if name is not None}, "task.custom.{split}")


def _read(task: TaskSettings, spec: TaskSpec) -> Table:
    assert task.custom is not None
    literal = task.custom.quotes == "literal"
    records = {split: read_records(file, literal_quotes=literal) for split, file in _files(task).items()}
    return Table(splits=records, texts=spec.texts, label=spec.label, label_names=spec.label_names)


SOURCE = Source(
    read=_read,
    fingerprint=lambda task, spec: fingerprint_files(_files(task)),
    own_data=True,
    known_tasks=False,
)
