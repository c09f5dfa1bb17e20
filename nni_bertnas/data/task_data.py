"""A task's rows, read from its source and split."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from nni_bertnas.artifacts import fingerprint
from nni_bertnas.config import TaskSettings, to_dict
from nni_bertnas.data.metrics import METRICS
from nni_bertnas.data.rows import Rows, class_numbers, clean_rows, label_order, plain_label, score_numbers
from nni_bertnas.data.sources import SOURCES
from nni_bertnas.data.sources.source import Source
from nni_bertnas.data.splits import SPLIT_SEED, split
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
    if task.custom is not None:
        for name in ("train", "dev", "test"):
            del settings["custom"][name]
    return fingerprint(settings, SPLIT_SEED, _source(task).fingerprint(task, task_spec(task)))


def load_task(task: TaskSettings) -> TaskData:
    """Read a task and split it, the same way every time, stratified by label.

    Its row of TASKS says how: rotten_tomatoes 6 : 1 : 1 into train, dev, test. GLUE: its labelled dev files keep their
    name, `glue_dev`, and are not looked at before the end, as its test files have no labels; our dev is as many rows,
    at most about a tenth, held out of its train file. Own data: what is not given as a file, of dev and test, is a
    tenth of train each.

    Raises:
        ConfigError: With the file and line of the first bad row.
    """
    spec = task_spec(task)
    if "train" not in spec.hub_splits:
        raise ConfigError(f"task.name: {task.name} has no training rows; train on mnli, and use bertnas predict")
    names, found = read_splits(task)
    found = spec.hold_out(found, names)
    train, dev = found.pop("train"), found.pop("dev")
    if task.max_train_rows is not None and task.max_train_rows < len(train):
        if task.max_train_rows < len(names):
            raise ConfigError(
                f"task.max_train_rows must be at least {len(names)}, a row of every label, got {task.max_train_rows}"
            )
        _, train = split(train, names, task.max_train_rows / len(train))
    return TaskData(names, {"train": train, "dev": dev, **found})


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
        rows, values = clean_rows(records, table.texts, table.label, skip=skip)
        if not len(rows):
            raise ConfigError(f"task: the split {name} has no rows")
        if spec.regression:
            labels = score_numbers(values, spec.label, skip=skip)
        else:
            names = names or label_order(text for _, text in values)
            _check_names(names, spec)
            labels = class_numbers(values, names, name, own=task.custom is not None, skip=skip)
        found[name] = _labelled(rows, labels, values)
    return names, found


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
    if len(names) > 2 and METRICS[spec.metric].two_labels:
        raise ConfigError(f"task.custom.metric: {spec.metric} is for two labels, there are {len(names)}; take f1_macro")
