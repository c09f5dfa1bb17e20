"""What the sources that the library `datasets` reads have in common."""

import logging
from collections.abc import Callable, Iterator
from typing import Any

from nni_bertnas.config import TaskSettings
from nni_bertnas.data.readers import Record
from nni_bertnas.data.sources.source import Table, Unlabelled
from nni_bertnas.data.tasks import TaskSpec
from nni_bertnas.errors import ConfigError

_DEV = ("validation", "dev", "valid", "val", "eval")  # what data sets call their own held-out split
_log = logging.getLogger(__name__)


def read_table(load: Callable[[Any], Any], origin: str, task: TaskSettings, spec: TaskSpec) -> Table:
    """The rows of a data set.

    Args:
        load: Takes the library, gives the data set.
        origin: Its folder or name, for messages.
        task: What is wanted of it.
        spec: Its columns and splits.

    Raises:
        ConfigError: It cannot be loaded, or lacks a split.
    """
    everything = _load(load, origin, task)
    chosen = {ours: theirs for ours, theirs in spec.hub_splits.items() if theirs in everything}
    if task.custom is not None and (name := next((name for name in _DEV if name in everything), None)):
        chosen["dev"] = name
    if unused := [name for name in everything if name not in chosen.values()] if task.custom is not None else []:
        _log.warning(
            "%s: the split(s) %s are not used, those used are %s; transfer.splits takes more as unlabelled text",
            origin,
            ", ".join(unused),
            ", ".join(f"{ours}: {theirs}" for ours, theirs in chosen.items()),
        )
    needed = ["train"] if task.custom is not None else list(spec.hub_splits)
    if missing := [spec.hub_splits[name] for name in needed if name not in chosen]:
        raise ConfigError(f"task.data_dir: {origin} has no split {', '.join(missing)}; it has {list(everything)}")
    feature = next(iter(everything.values())).features.get(spec.label)
    own_names = tuple(getattr(feature, "names", None) or ())

    def records(split: str) -> Iterator[Record]:
        for number, values in enumerate(everything[split]):
            label = values.get(spec.label)
            if own_names and isinstance(label, int) and 0 <= label < len(own_names):
                values = {**values, spec.label: own_names[label]}
            yield Record(f"{origin}, {split}, row {number}", values)

    splits = {ours: records(theirs) for ours, theirs in chosen.items()}
    return Table(splits=splits, texts=spec.texts, label=spec.label, label_names=spec.label_names or own_names)


def other_records(
    load: Callable[[Any], Any], origin: str, task: TaskSettings, spec: TaskSpec, split: str
) -> Unlabelled:
    """The rows of a split that the task does not use; arguments but the split as of :func:`read_table`.

    Raises:
        ConfigError: It cannot be loaded, or is not there, or is one of the task's.
    """
    everything = _load(load, origin, task)
    others = [name for name in everything if name not in (*spec.hub_splits.values(), *_DEV)]
    if split not in others:
        raise ConfigError(f"transfer.splits must be among {', '.join(others) or 'none'} of {origin}, got {split}")
    records = (Record(f"{origin}, {split}, row {number}", row) for number, row in enumerate(everything[split]))
    return spec.texts, records


def _load(load: Callable[[Any], Any], origin: str, task: TaskSettings) -> Any:
    import datasets  # takes a second to load, and few studies need it

    try:
        everything = load(datasets)
    except (OSError, ValueError, ConnectionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"task.source: {origin} ({task.name}) cannot be loaded: {reason}") from error
    return datasets.DatasetDict(train=everything) if isinstance(everything, datasets.Dataset) else everything
