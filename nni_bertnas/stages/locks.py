"""Locks of a study's folder, across processes."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from nni_bertnas.errors import PhaseError
from nni_bertnas.tracking.histories import HISTORY, MAKER, read_state, this_process, write_state

_SECONDS = 2.0  # of waiting that nobody need be told of
_log = logging.getLogger(__name__)


@contextmanager
def one_at_a_time(root: Path, name: str) -> Iterator[None]:
    """Hold one named lock of the study in a folder."""
    root.mkdir(parents=True, exist_ok=True)
    lock = FileLock(root / f".{name}.lock")
    try:
        lock.acquire(timeout=_SECONDS)
    except Timeout:
        _log.warning("%s: another process makes %s; this one waits for it", root, name)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def alone(root: Path) -> Iterator[None]:
    """Be the one process that makes all of the study in a folder, as long as the block lasts.

    Raises:
        PhaseError: Another one is.
    """
    root.mkdir(parents=True, exist_ok=True)
    lock, folder = FileLock(root / ".run.lock"), root / HISTORY
    try:
        lock.acquire(blocking=False)
    except Timeout:
        who = read_state(folder, MAKER)
        raise PhaseError(
            f"{root} is being made already, by process {who.get('pid', '?')} on {who.get('host', '?')}; watch "
            "it with: bertnas status STUDY, or end it first"
        ) from None
    try:
        with suppress(OSError):
            write_state(folder, MAKER, this_process())
        yield
    finally:
        lock.release()
