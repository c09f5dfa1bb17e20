"""Lines to other machines by `ssh`, kept open as long as work goes on."""

import logging
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from nni_bertnas.errors import PhaseError

OPEN = "open"  # what the command over there prints first
_AGAIN_SECONDS = 1.0
_log = logging.getLogger(__name__)


class Taken(Exception):
    """A port is taken on a machine, or sshd there forwards none."""


@contextmanager
def line(command: Sequence[str], name: str) -> Iterator[None]:
    """Keep a command of `ssh` running as long as the block lasts; where it breaks it is started anew.

    NNI waits half a minute for a connection to come back.

    Args:
        command: Prints OPEN as soon as its ports lead where they should, and ends with its input.
        name: Of the machine.

    Raises:
        Taken: The port over there.
        PhaseError: There is no line to that machine.
    """
    process, end = _open(command, name), threading.Event()

    def keep() -> None:
        nonlocal process
        while True:
            process.wait()
            if end.wait(_AGAIN_SECONDS):
                return
            try:
                process = _open(command, name)
            except (PhaseError, Taken) as error:
                _log.warning("the line to %s is broken (%s); trying again", name, error)
            if end.is_set():
                process.terminate()

    thread = threading.Thread(target=keep, daemon=True)
    thread.start()
    try:
        yield
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
    raise PhaseError(f"{name}: no line to it ({said or 'ssh ended'}); run the same command again to go on")
