"""What a student learns from beside train, answered by the teacher alone: read in pieces, so that any size will do."""

import logging
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from nni_bertnas.artifacts import file_fingerprint
from nni_bertnas.config import TaskSettings, TransferSettings
from nni_bertnas.data.rows import Rows, unlabelled
from nni_bertnas.data.sources import SOURCES
from nni_bertnas.data.splits import SPLIT_SEED
from nni_bertnas.data.tasks import TaskSpec, task_spec
from nni_bertnas.data.texts import existing_file, read_rows, read_texts, reviews_file, single_texts, some_reviews
from nni_bertnas.errors import ConfigError, lookup

_log = logging.getLogger(__name__)


def load_transfer(settings: TransferSettings, task: TaskSettings, splits: Mapping[str, Rows]) -> Iterator[Rows]:
    """The rows, some at a time; of each source a fixed choice. None stands in the task's own rows, or twice.

    Args:
        settings: Where they come from.
        task: Whose texts they are.
        splits: The task's rows.

    Raises:
        ConfigError: With file and line of the first bad row.
    """
    spec = task_spec(task)
    seen = {hash(row) for rows in splits.values() for row in _texts(rows)}  # texts themselves would take all memory
    for name, chunks in _sources(settings, task, spec):
        read = fresh = 0
        for rows in chunks:
            new = []
            for number, mark in enumerate(map(hash, _texts(rows))):
                if mark not in seen:
                    seen.add(mark)
                    new.append(number)
            read, fresh = read + len(rows), fresh + len(new)
            if new:
                kept = rows.take(new)
                yield Rows(kept.texts, unlabelled(len(new), regression=spec.regression), kept.pairs)
        _log.info("%d rows without labels from %s, %d of them new", read, name, fresh)


def _sources(settings: TransferSettings, task: TaskSettings, spec: TaskSpec) -> Iterator[tuple[str, Iterable[Rows]]]:
    most = settings.max_rows
    for name in settings.files:
        rows = read_texts(existing_file(name, "transfer.files"), spec.texts)
        yield name, rows if most is None else [some_rows(rows, most)]
    for name in settings.splits:
        texts, records = lookup(SOURCES, task.source, "task.source").other_split(task, spec, name)
        rows = read_rows(records, texts)
        yield f"the split {name}", rows if most is None else [some_rows(rows, most)]
    if settings.reviews:
        yield "the package's reviews", [single_texts(some_reviews(settings.reviews, "transfer.reviews"), spec.texts)]


def some_rows(chunks: Iterable[Rows], count: int) -> Rows:
    """A fixed choice of so many rows at most, in their order; fewer are a part of more, and no more are kept in memory.

    Args:
        chunks: All rows, some at a time; one at least.
        count: How many.
    """
    generator = np.random.default_rng(SPLIT_SEED)
    rows, keys = None, np.zeros(0)
    for chunk in chunks:
        rows = chunk if rows is None else rows + chunk
        keys = np.concatenate([keys, generator.random(len(chunk))])
        least = np.sort(np.argsort(keys)[:count])  # the rows of the least random keys so far
        rows, keys = rows.take(least), keys[least]
    if rows is None:
        raise ConfigError("transfer: there are no rows; name other files or splits, or more reviews")
    return rows


def _texts(rows: Rows) -> Iterable[tuple[str, str]]:
    return zip(rows.texts, rows.pairs or [""] * len(rows), strict=True)


def transfer_fingerprint(settings: TransferSettings, task: TaskSettings) -> list[str]:
    """The content of every file, the splits, and how many sentences of the package.

    Raises:
        ConfigError: A file or a split is missing.
    """
    parts = [f"{settings.reviews} {settings.max_rows}"]
    if settings.reviews:
        parts.append(file_fingerprint(reviews_file()))
    parts += [file_fingerprint(existing_file(name, "transfer.files")) for name in settings.files]
    source, spec = lookup(SOURCES, task.source, "task.source"), task_spec(task)
    return parts + [source.other_fingerprint(task, spec, name) for name in settings.splits]
