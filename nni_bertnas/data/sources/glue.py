"""Rows of the classic GLUE folder, as `download_glue_data.py` writes it."""

from collections.abc import Mapping
from pathlib import Path

from nni_bertnas.artifacts import file_fingerprint
from nni_bertnas.config import TaskSettings
from nni_bertnas.data.readers import read_records
from nni_bertnas.data.sources.source import Source, Table, Unlabelled, check_files, fingerprint_files
from nni_bertnas.data.tasks import GlueFiles, TaskSpec
from nni_bertnas.errors import ConfigError


def _glue(task: TaskSettings, spec: TaskSpec) -> GlueFiles:
    if spec.glue is None:
        raise ConfigError(f"task.source: {task.name} is not a GLUE task; set source: package")
    return spec.glue


def _files(task: TaskSettings, spec: TaskSpec) -> Mapping[str, Path]:
    glue = _glue(task, spec)
    folder = Path(task.data_dir or ".") / glue.folder
    named = {"train": glue.train, **glue.dev}
    files = {split: folder / name for split, name in named.items() if name is not None}
    return check_files(files, "task.data_dir", "; give the folder that holds {folder}/")


def _read(task: TaskSettings, spec: TaskSpec) -> Table:
    glue = _glue(task, spec)
    records = {
        split: read_records(file, literal_quotes=True, header=glue.header) for split, file in _files(task, spec).items()
    }
    return Table(splits=records, texts=glue.texts, label=glue.label, label_names=spec.label_names)


def _other_file(task: TaskSettings, spec: TaskSpec, split: str) -> Path:
    glue = _glue(task, spec)
    names = {Path(file).stem: file for file in glue.test.values()}
    if split not in names:
        raise ConfigError(f"transfer.splits must be among {', '.join(names)}, got {split}")
    files = {split: Path(task.data_dir or ".") / glue.folder / names[split]}
    return check_files(files, "transfer.splits")[split]


def _other(task: TaskSettings, spec: TaskSpec, split: str) -> Unlabelled:
    glue = _glue(task, spec)
    return glue.test_texts or glue.texts, read_records(_other_file(task, spec, split), literal_quotes=True)


SOURCE = Source(
    read=_read,
    fingerprint=lambda task, spec: fingerprint_files(_files(task, spec)),
    other_split=_other,
    other_fingerprint=lambda task, spec, split: file_fingerprint(_other_file(task, spec, split)),
    needs_folder=True,
)
