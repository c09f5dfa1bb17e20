"""A task's rows, read from its source and split."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from nni_bertnas.artifacts import fingerprint
from nni_bertnas.config import TaskSettings, to_dict
from nni_bertnas.data.label_sets import MOST, read_marks, read_set, set_number, strata
from nni_bertnas.data.metrics import METRICS
from nni_bertnas.data.readers import Record
from nni_bertnas.data.rows import Rows, class_numbers, clean_rows, label_order, plain_label, score_numbers
from nni_bertnas.data.sources import SOURCES
from nni_bertnas.data.sources.source import Source
from nni_bertnas.data.splits import SPLIT_SEED, SPLITTING, Strata, repeated, split, strata_of
from nni_bertnas.data.tasks import TaskSpec, task_spec
from nni_bertnas.errors import ConfigError, lookup

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TaskData:
    """A task's rows, ready to be learnt from.

    Attributes:
        label_names: In the order of their numbers; empty for regression.
        splits: train, dev, and one or more that are read only at the end.
    """

    label_names: tuple[str, ...]
    splits: dict[str, Rows]

    @property
    def final_splits(self) -> list[str]:
        """The splits that no training and no choice looks at."""
        return [name for name in self.splits if name not in ("train", "dev")]


def _source(task: TaskSettings) -> Source:
    return lookup(SOURCES, task.source, "task.source")


def data_fingerprint(task: TaskSettings) -> str:
    """A hash of the task's settings and the content of its files."""
    settings = to_dict(task)
    del settings["data_dir"]  # the place does not matter
    if task.max_eval_rows is None:
        del settings["max_eval_rows"]  # what was made before there was such a field still serves
    if task.custom is not None:
        for name in ("train", "dev", "test"):
            del settings["custom"][name]
    return fingerprint(settings, SPLIT_SEED, SPLITTING, _source(task).fingerprint(task, task_spec(task)))


def load_task(task: TaskSettings) -> TaskData:
    """Read a task and split it, the same way every time, stratified by label.

    Its row of TASKS says how: rotten_tomatoes 6 : 1 : 1 into train, dev, test. GLUE: its labelled dev files keep their
    name, `glue_dev`, and are not looked at before the end, as its test files have no labels; our dev is as many rows,
    at most about a tenth, held out of its train file. Own data: what is not given as a file, of dev and test, is a
    tenth of train each. Rows of the same text stay in one split.

    Raises:
        ConfigError: With the file and line of the first bad row.
    """
    spec = task_spec(task)
    if "train" not in spec.hub_splits:
        raise ConfigError(f"task.name: {task.name} has no training rows; train on mnli, and use bertnas predict")
    names, found = read_splits(task)
    by = (lambda labels: strata(labels, len(names))) if spec.multi_label else strata_of(names)
    found = _apart(task, spec.hold_out(found, by))
    train, dev = found.pop("train"), found.pop("dev")
    rest = {name: _some(rows, task.max_eval_rows) for name, rows in {"dev": dev, **found}.items()}
    return TaskData(names, {"train": _part(train, task.max_train_rows, names, by), **rest})


def _part(train: Rows, limit: int | None, names: tuple[str, ...], by: Strata) -> Rows:
    """A stratified part of train, always the same; all of it where there are no more rows.

    Raises:
        ConfigError: It would have no row of some label.
    """
    if limit is None or limit >= len(train):
        return train
    if limit < len(names):
        raise ConfigError(f"task.max_train_rows must be at least {len(names)}, a row of every label, got {limit}")
    limit = min(limit, len(train) - len(names))  # the rest, too, has to have a row of every label
    return split(train, by, limit / len(train))[1]


def _some(rows: Rows, limit: int | None) -> Rows:
    """So many rows at random, always the same, in their order."""
    if limit is None or limit >= len(rows):
        return rows
    return rows.take(sorted(np.random.default_rng(SPLIT_SEED).permutation(len(rows))[:limit].tolist()))


def _apart(task: TaskSettings, found: dict[str, Rows]) -> dict[str, Rows]:
    """The splits without what stands in train, too, where a study's own files have it; elsewhere it is counted."""
    for name, rows in found.items():
        same = set(repeated(found["train"], rows)) if name != "train" else set()
        if not same:
            continue
        drop = task.custom is not None and task.repeated == "drop"
        done = "left out (task.repeated: keep keeps them)" if drop else "kept"
        _log.warning("%d of %d rows of %s stand in train, too: %s", len(same), len(rows), name, done)
        if drop and len(same) == len(rows):
            raise ConfigError(
                f"task.custom.{name}: every row of it stands in train, too; give other rows, or set task.repeated: keep"
            )
        if drop:
            found = {**found, name: rows.take(number for number in range(len(rows)) if number not in same)}
    return found


def read_splits(task: TaskSettings) -> tuple[tuple[str, ...], dict[str, Rows]]:
    """All labelled rows of a task as they are distributed.

    Returns:
        Label names in the order of their numbers (empty for regression), and the rows by split.

    Raises:
        ConfigError: With file and line of the first bad row.
    """
    spec = task_spec(task)
    table = _source(task).read(task, spec)
    names = table.label_names
    found: dict[str, Rows] = {}
    for name, records in table.splits.items():
        skip = task.bad_rows == "skip"
        if task.custom is not None and task.custom.label_columns:
            records = _joined(records, task.custom.label_columns, spec.label)
        rows, values = clean_rows(records, table.texts, table.label, skip=skip, read=_set_reader(task))
        if not len(rows):
            raise ConfigError(f"task: the split {name} has no rows; give one with rows")
        if spec.regression:
            labels = score_numbers(values, spec.label, skip=skip)
        elif spec.multi_label:
            names = names or label_order(label for _, labels in values for label in labels)
            _check_names(names, spec)
            labels = _set_numbers(values, names, name, skip=skip)
        else:
            names = names or label_order(text for _, text in values)
            _check_names(names, spec)
            labels = class_numbers(values, names, name, own=task.custom is not None, skip=skip)
        found[name] = _labelled(rows, labels, values)
    return names, found


def _joined(records: Iterable[Record], columns: Sequence[str], label: str) -> Iterator[Record]:
    """Records whose labels stand in a column each, with all of them in one."""
    for record in records:
        if record.problem:
            yield record
            continue
        if missing := [name for name in columns if name not in record.values]:
            raise ConfigError(f"{record.where}: no column {', '.join(missing)} (task.custom.label_columns)")
        found = read_marks({name: record.values[name] for name in columns})
        if isinstance(found, str):
            yield replace(record, problem=found)
        else:
            yield replace(record, values={**record.values, label: found})


def _set_reader(task: TaskSettings) -> Callable[[Any], list[str] | None] | None:
    own = task.custom
    return None if own is None or own.kind != "multi_label" else lambda value: read_set(value, own.label_separator)


def _set_numbers(
    values: Sequence[tuple[str, list[str]]], names: Sequence[str], split: str, *, skip: bool
) -> list[float | None]:
    """Sets of labels as numbers; see :func:`~nni_bertnas.data.rows.class_numbers`."""
    flat = [(where, label) for where, labels in values for label in labels]
    numbers = iter(class_numbers(flat, names, split, own=True, skip=skip))
    found: list[float | None] = []
    for _, labels in values:
        own = [next(numbers) for _ in labels]
        found.append(None if None in own else set_number(int(label) for label in own if label is not None))
    return found


def _labelled(rows: Rows, labels: Sequence[float | None], values: Sequence[tuple[str, str]]) -> Rows:
    """The rows that have a label, those that have none named in the log."""
    kept = [number for number, label in enumerate(labels) if label is not None]
    if len(kept) < len(rows):
        lost = [
            f"{where}: label {text!r}" for (where, text), label in zip(values, labels, strict=True) if label is None
        ]
        _log.warning("%d row(s) without a valid label left out, the first: %s", len(lost), "; ".join(lost[:5]))
    rows = rows.take(kept)
    return Rows(rows.texts, [label for label in labels if label is not None], rows.pairs)


def _check_names(names: Sequence[str], spec: TaskSpec) -> None:
    if len(names) < 2:
        raise ConfigError(f"task: train has one label, {', '.join(names)}; a classifier needs two or more")
    if len({plain_label(name) for name in names}) < len(names):
        raise ConfigError(
            f"task: of the labels {', '.join(names)} two differ in case, spaces or hyphens alone; join them"
        )
    if spec.multi_label and len(names) > MOST:
        raise ConfigError(f"task: there are {len(names)} labels; a row can have any of at most {MOST}")
    if len(names) > 2 and METRICS[spec.metric].two_labels:
        raise ConfigError(f"task.custom.metric: {spec.metric} is for two labels, there are {len(names)}; take f1_macro")
