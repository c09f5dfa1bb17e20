"""Lines to other machines by `ssh`, kept open as long as work goes on."""

import logging
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from nni_bertnas.errors import PhaseError

OPEN = "open"  # what the command over there prints first
_AGAIN_SECONDS = 1.0
_LOST_SECONDS = 60.0  # that a line may be broken for; NNI waits half a minute for a connection to come back
_log = logging.getLogger(__name__)


class Taken(Exception):
    """A port is taken on a machine, or sshd there forwards none."""


class Line:
    """How a line is.

    Attributes:
        broken: Since when, by a clock that nobody sets; None: it stands.
    """

    def __init__(self) -> None:
        self.broken: float | None = None

    @property
    def lost(self) -> bool:
        """Whether it has been broken for so long that nobody need wait for it."""
        return self.broken is not None and time.monotonic() - self.broken > _LOST_SECONDS


@contextmanager
def line(command: Sequence[str], name: str) -> Iterator[Line]:
    """Keep a command of `ssh` running as long as the block lasts; where it breaks it is started anew.

    Args:
        command: Prints OPEN as soon as its ports lead where they should, and ends with its input.
        name: Of the machine.

    Yields:
        How it is, at any time.

    Raises:
        Taken: The port over there.
        PhaseError: There is no line to that machine.
    """
    process, end, state = _open(command, name), threading.Event(), Line()

    def keep() -> None:
        nonlocal process
        while True:
            process.wait()
            if end.wait(_AGAIN_SECONDS):
                return
            try:
                process = _open(command, name)
            except (PhaseError, Taken) as error:
                if state.broken is None:
                    state.broken = time.monotonic()
                    _log.warning("the line to another machine is broken (%s); trying again", error)
            else:
                state.broken = None
            if end.is_set():
                process.terminate()

    thread = threading.Thread(target=keep, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        end.set()
        process.terminate()
        thread.join()


def _open(command: Sequence[str], name: str) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    # A session of its own: Ctrl-C is for whoever started the trials. Its input ends with this process.
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, start_new_session=True)
    assert process.stdout is not None and process.stderr is not None
    try:
        if process.stdout.readline().strip() == OPEN:
            return process
    except BaseException:
        process.terminate()
        raise
    said = process.stderr.read().strip()
    process.wait()
    if "remote port forwarding failed" in said:
        raise Taken(said)
    raise PhaseError(f"{name}: no line to it ({said or 'ssh ended'})")
