"""The log of a run: everything that was said, by whom and when, appended by all processes that work on it."""

import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    _Stream = logging.StreamHandler[TextIO]
else:
    _Stream = logging.StreamHandler  # Python 3.10 cannot take a type here
LOG = "bertnas.log"  # under a run's root
said = logging.getLogger("bertnas")  # takes what a command tells people: into the log alone, as it is printed already
said.propagate = False
said.setLevel(logging.INFO)
_APART = ("bertnas", "nni", "transformers", "pytorch_lightning")  # whose messages may not reach the root
_FORMAT = "%(asctime)s %(levelname)s {}%(name)s: %(message)s"
_log = logging.getLogger(__name__)


class _Once(logging.FileHandler):
    """Writes a record once, though it may come from its own logger and from the root."""

    _last: logging.LogRecord | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Called by logging."""
        if record is not self._last:
            self._last = record
            super().emit(record)

    def format(self, record: logging.LogRecord) -> str:
        """Without the marks that NNI makes colours of."""
        return re.sub(r"\$\{[A-Z]+\}", "", super().format(record))

    def close(self) -> None:
        """Called by logging."""
        with suppress(OSError):  # as below
            super().close()

    def handleError(self, record: logging.LogRecord) -> None:
        """A full disk is no reason to stop, nor to say so at every line."""


class Terminal(_Stream):
    """Writes to what stderr is at the moment: while a bar is shown, above it."""

    def emit(self, record: logging.LogRecord) -> None:
        """Called by logging."""
        self.stream = sys.stderr
        super().emit(record)


@contextmanager
def open_log(path: Path, who: str = "") -> Iterator[None]:
    """Append everything that is logged from INFO on to a file, as long as the block lasts, and what ends it.

    Args:
        path: Of the file; where it cannot be written, the work goes on without.
        who: Written before every line, e.g. a trial's unit.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = _Once(path, encoding="utf-8")
    except OSError as error:
        _log.warning("%s is not written (%s); the work goes on", path, error)
        yield
        return
    handler.setLevel(logging.INFO)
    handler.setFormatter(logging.Formatter(_FORMAT.format(f"[{who}] " if who else "")))
    root, before = logging.getLogger(), logging.getLogger().level
    for other in root.handlers:  # the terminal has what it had
        if other.level == logging.NOTSET:
            other.setLevel(before)
    root.setLevel(min(before, logging.INFO))
    loggers = [root, *map(logging.getLogger, _APART)]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield
    except Exception as error:
        said.error("%s: %s", type(error).__name__, error, exc_info=not hasattr(error, "exit_code"))
        raise
    except BaseException as error:
        said.error("ended by %s", type(error).__name__)
        raise
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
        root.setLevel(before)
        handler.close()
