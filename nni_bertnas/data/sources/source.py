"""What a source of rows is."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nni_bertnas.artifacts import file_fingerprint
from nni_bertnas.config import TaskSettings
from nni_bertnas.data.readers import Record
from nni_bertnas.data.tasks import TaskSpec
from nni_bertnas.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Table:
    """A task's rows as they are distributed.

    Attributes:
        splits: Records by split.
        texts: Columns of the text, or of the two texts of a pair.
        label: Column of the label.
        label_names: In the order of their numbers; empty for regression, and where they are to be read from train.
    """

    splits: Mapping[str, Iterable[Record]]
    texts: Sequence[str]
    label: str
    label_names: tuple[str, ...]


Unlabelled = tuple[Sequence[str], Iterable[Record]]  # columns of the texts, and the records


def _no_others(task: TaskSettings, spec: TaskSpec, split: str) -> Unlabelled:
    raise ConfigError(
        f"transfer.splits: {split}: task.source {task.source} has no splits beside those of the task; name files in "
        "transfer.files"
    )


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where rows come from.

    Attributes:
        read: Gives the rows.
        fingerprint: What identifies them: the content of files, or a name.
        other_split: Gives the rows of a split that the task does not use, whatever labels they have.
        other_fingerprint: What identifies such a split, beside what identifies the rows.
        own_data: Whether a user's own data can come from here.
        known_tasks: Whether the tasks of TASKS can.
        needs_folder: Whether `task.data_dir` must be given.
    """

    read: Callable[[TaskSettings, TaskSpec], Table]
    fingerprint: Callable[[TaskSettings, TaskSpec], list[str]]
    other_split: Callable[[TaskSettings, TaskSpec, str], Unlabelled] = _no_others
    other_fingerprint: Callable[[TaskSettings, TaskSpec, str], str] = lambda task, spec, split: split
    own_data: bool = False
    known_tasks: bool = True
    needs_folder: bool = False


def fingerprint_files(files: Mapping[str, Path]) -> list[str]:
    """The content of every file, by split."""
    return [f"{split} {file_fingerprint(file)}" for split, file in files.items()]


def check_files(files: Mapping[str, Path], field: str, remedy: str = "") -> Mapping[str, Path]:
    """The files, if they are there.

    Raises:
        ConfigError: One is not; with the setting that names it, where `{split}` stands for its split.
    """
    for split, file in files.items():
        if not file.is_file():
            where = remedy.format(folder=file.parent.name)
            raise ConfigError(f"{field.format(split=split)}: {file} does not exist{where}")
    return files
