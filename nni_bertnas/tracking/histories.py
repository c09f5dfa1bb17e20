"""What is known of every unit of a study's work: who works on it, since when, and the metrics of its epochs.

Written beside the results while a unit is made, and read by other processes at the same time. It takes nothing heavy to
import, and whatever happens to its files, the work goes on.
"""

import hashlib
import json
import logging
import math
import os
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from nni_bertnas.artifacts import write_whole

HISTORY = "history"  # folder under a run's root
# Beside the states of units: what the study asks for, where NNI's web UI is, which process makes all of it.
OUTLINE, WEB_UI, MAKER = "outline", "web_ui", "maker"
_LONGEST = 120  # characters of a file's name without its ending
_TAIL_BYTES = 1 << 16  # of a history, that the last epoch is looked for in
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_log = logging.getLogger(__name__)


def record_name(stage: str, unit: str) -> str:
    """The name of a unit's files: its stage and, where there are several units, its own name."""
    name = f"{stage}-{unit}".removesuffix("-").replace(os.sep, "_")
    if len(name) > _LONGEST:  # of a trial with many decisions
        name = f"{name[:_LONGEST]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return name


def history_file(folder: Path, name: str) -> Path:
    """Of one unit: a JSON object per epoch."""
    return folder / f"{name}.jsonl"


def state_file(folder: Path, name: str) -> Path:
    """Of one unit: who makes it, or made it, and when."""
    return folder / f".{name}.json"


class Record:
    """The history and the state of one unit of work.

    Args:
        folder: Of all units of the study.
        name: See :func:`record_name`.
        mark: Of the study as it is now, so that a result of other settings is known.
    """

    def __init__(self, folder: Path, name: str, mark: str) -> None:
        self.folder, self.name, self.mark = folder, name, mark
        self._since: float | None = None
        self._start = time.perf_counter()
        self._epochs = 0
        self._broken = False

    def begin(self, kept: Sequence[Mapping[str, Any]] = ()) -> None:
        """Begin the unit anew, its history behind those epochs of an earlier attempt that stand."""
        before = float(kept[-1].get("seconds") or 0) if kept else 0.0
        self._start, self._since, self._epochs = time.perf_counter() - before, time.time() - before, len(kept)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(history_file(self.folder, self.name), "".join(json.dumps(line) + "\n" for line in kept))
        except OSError as error:
            self._break(error)
        self._write({"state": "working", **this_process(), "experiment": os.environ.get("NNI_EXP_ID")})

    def epoch(self, metrics: Mapping[str, float]) -> None:
        """Append the metrics of one epoch."""
        if self._since is None:
            self.begin()
        seconds = round(time.perf_counter() - self._start, 3)
        line = {"epoch": self._epochs, "seconds": seconds, **{name: _plain(value) for name, value in metrics.items()}}
        self._epochs += 1
        if self._broken:
            return
        try:
            with history_file(self.folder, self.name).open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            self._break(error)

    def final(self, metrics: Mapping[str, float]) -> None:
        """The result stands beside the unit's work."""

    def end(self, state: str) -> None:
        """The unit is `done`, `stopped`, or was `reused` as it stood."""
        if state == "reused":
            before = read_state(self.folder, self.name)
            if (before.get("state"), before.get("study")) not in (("done", self.mark), ("reused", self.mark)):
                self._since = before.get("since")
                self._write({"state": state, "seconds": before.get("seconds")})
        elif self._since is not None:
            self._write({"state": state, "seconds": round(time.perf_counter() - self._start, 3)})

    def close(self) -> None:
        """Everything is written already."""

    def _write(self, state: Mapping[str, Any]) -> None:
        if self._broken:
            return
        try:
            write_state(self.folder, self.name, {**state, "since": self._since, "study": self.mark})
        except OSError as error:
            self._break(error)

    def _break(self, error: OSError) -> None:
        if not self._broken:
            _log.warning("the history of %s is not written (%s); the work goes on", self.name, error)
        self._broken = True


def _plain(value: float) -> float | None:
    """As JSON has it: no number where there is none."""
    return value if math.isfinite(value) else None


def read_history(folder: Path, name: str) -> list[dict[str, Any]]:
    """Every epoch of a unit so far; none where it has no history."""
    try:
        lines = history_file(folder, name).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    return [one for one in map(_parse, lines) if one is not None]


def last_epoch(folder: Path, name: str) -> dict[str, Any] | None:
    """The last epoch of a unit, however long its history is."""
    try:
        with history_file(folder, name).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return None
    return next((one for one in map(_parse, reversed(lines)) if one is not None), None)


def _parse(line: str) -> dict[str, Any] | None:
    """None for the half of a line, as another process may be at writing it."""
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def write_state(folder: Path, name: str, state: Mapping[str, Any]) -> None:
    """Say of a unit, or of something else by name, how it stands.

    Raises:
        OSError: The folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(state_file(folder, name), json.dumps(state))


def read_state(folder: Path, name: str) -> dict[str, Any]:
    """What the state of a unit says; nothing where there is none."""
    try:
        return _parse(state_file(folder, name).read_text(encoding="utf-8")) or {}
    except OSError:
        return {}


def this_process() -> dict[str, Any]:
    """What tells this process from all others, and when that was written down, whatever the clock is set to."""
    own, job = psutil.Process(), os.environ.get("SLURM_JOB_ID")
    found = {
        "pid": own.pid, "created": _since_boot(own), "boot": _boot(), "host": socket.gethostname(),
        "monotonic": time.monotonic(),
    }  # fmt: skip
    return found if job is None else found | {"slurm_job": job}


def _since_boot(process: psutil.Process) -> float:
    """When a process was made, in seconds since the start of the machine."""
    return float(process.create_time() - psutil.boot_time())


def _boot() -> str:
    """What tells this start of the machine from others; empty where the system does not say."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def seconds_since(state: Mapping[str, Any]) -> float:
    """How long ago a process of this machine wrote down a state."""
    return max(0.0, time.monotonic() - float(state["monotonic"]))


def is_alive(state: Mapping[str, Any]) -> bool | None:
    """Whether the process that a state names is still there; None where that is on another machine."""
    if state.get("host") != socket.gethostname():
        return None
    try:
        process = psutil.Process(int(state["pid"]))
        # A number is given to another process later.
        same = state.get("boot") == _boot() and abs(_since_boot(process) - float(state["created"])) < 1
        return same and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, KeyError, ValueError, TypeError):
        return False
