"""NNI's manager, the process behind the web UI: started on a port that is ours, waited for, and ended with us.

NNI asks whoever answers on a port, three times in three seconds, and takes it for its own manager. Two studies that
start at the same moment then share one, and on a busy machine none is found. Here a port is held by a lock from its
choice to the end of the experiment, and the manager is known by its process.
"""

import contextlib
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import Popen
from typing import Any

import psutil
from filelock import FileLock, Timeout
from nni.experiment import Experiment, launcher
from nni.tools.nnictl.config_utils import Experiments

from nni_bertnas.errors import ConfigError, PhaseError
from nni_bertnas.launch.loopback import node_option

_PORTS = 100  # that are tried, from the one that is asked for on
_PATIENCE_SECONDS = 120.0  # for a manager that lives
_POLL_SECONDS = 0.1
_LOCAL = "localhost,127.0.0.1,::1"

Hold = Callable[[int], contextlib.AbstractContextManager[int]]  # the first port to be tried -> one that is held


@contextlib.contextmanager
def manager(experiment: Experiment, port: int, hold: Hold | None = None) -> Iterator[int]:
    """Start an experiment's manager, and end it and what it started when the block ends, however that is.

    Args:
        experiment: Not started yet.
        port: Of the web UI; the next free one is taken.
        hold: Finds and holds it; by default :func:`hold_port`.

    Yields:
        The port it took.

    Raises:
        ConfigError: No port is free.
        PhaseError: NNI does not start; with what it said.
    """
    with _environment(), (hold or hold_port)(port) as held:
        try:
            with _watched(held):
                experiment.start(held)
            yield held
        finally:
            _end(experiment)


@contextlib.contextmanager
def hold_port(first: int, beside: int = 0) -> Iterator[int]:
    """The first port from `first` on that nobody on this machine listens on or has chosen, held by a lock.

    Args:
        first: To be tried.
        beside: So many ports behind it have to be free, too.

    Raises:
        ConfigError: None of the next hundred is free.
    """
    for port in range(first, min(first + _PORTS, 65536 - beside)):
        lock = FileLock(Path(tempfile.gettempdir()) / f"bertnas-{os.getuid()}-port{port}.lock")
        try:
            lock.acquire(blocking=False)
        except Timeout:
            continue
        try:
            if all(_is_free(one) for one in range(port, port + beside + 1)):
                yield port
                return
        finally:
            lock.release()
    raise ConfigError(f"nni.port: no free port from {first} on; choose another")


def writable(folder: Path) -> bool:
    """Whether files can be made in a folder, which may not be there yet."""
    there = next(part for part in (folder, *folder.parents) if part.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            return True
    except OSError:
        return False


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def check_alive(experiment: Experiment) -> None:
    """Whether an experiment's own manager is still there, so that what answers on its port is that one.

    Raises:
        PhaseError: It is not.
    """
    process = experiment._proc
    if process is None or process.poll() is not None:
        raise PhaseError(f"NNI's manager has ended{_said(experiment)}; run the same command again to go on")


def _said(experiment: Experiment) -> str:
    folder = Path(experiment.config.experiment_working_directory, experiment.id, "log")
    return f"; see {folder}"


@contextlib.contextmanager
def _environment() -> Iterator[None]:
    """What NNI, its manager and the trials find in their environment.

    The web UI has no password: it is kept on this machine. No proxy stands between processes of one machine. NNI keeps
    a list of experiments in the user's home; where that cannot be written, in the folder of temporary files.
    """
    variables = {"NODE_OPTIONS": " ".join(filter(None, [os.environ.get("NODE_OPTIONS"), node_option()]))}
    # The portal's button wants a command tensorboard, which is beside this Python, activated or not.
    variables["PATH"] = os.pathsep.join(filter(None, [os.environ.get("PATH"), str(Path(sys.executable).parent)]))
    for name in ("NO_PROXY", "no_proxy"):
        variables[name] = ",".join(filter(None, [os.environ.get(name), _LOCAL]))
    if not writable(Path.home()):
        home = Path(tempfile.gettempdir()) / f"bertnas-{os.getuid()}-home"
        home.mkdir(exist_ok=True)
        variables |= {"HOME": str(home), "HF_HOME": os.environ.get("HF_HOME", str(Path.home() / ".cache/huggingface"))}
    defaults = Experiments.__init__.__defaults__
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    if "HOME" in variables:
        Experiments.__init__.__defaults__ = (str(Path(variables["HOME"]) / "nni-experiments"),)
    try:
        yield
    finally:
        Experiments.__init__.__defaults__ = defaults
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _watched(port: int) -> Iterator[None]:
    """Let NNI's launcher wait for the process it started, and for no other that answers on the port."""
    started: list[Popen[bytes]] = []
    start, check = launcher._start_rest_server, launcher._check_rest_server

    def keep(*arguments: Any) -> Any:
        started.append(start(*arguments))
        return started[-1]

    def wait(*arguments: Any, **options: Any) -> None:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not _listens(started[-1].pid, port):
            if started[-1].poll() is not None:
                raise PhaseError(f"NNI's manager ended with code {started[-1].returncode} before it listened")
            if time.monotonic() > deadline:
                raise PhaseError(
                    f"NNI's manager did not listen on port {port} within {_PATIENCE_SECONDS:.0f} s; the machine may be "
                    "overloaded: run the same command again to go on"
                )
            time.sleep(_POLL_SECONDS)
        check(*arguments, **{**options, "retry": int(_PATIENCE_SECONDS)})

    launcher._start_rest_server, launcher._check_rest_server = keep, wait
    try:
        yield
    except PhaseError:
        raise
    except Exception as error:
        raise PhaseError(f"NNI does not start: {error}") from error
    finally:
        launcher._start_rest_server, launcher._check_rest_server = start, check


def _listens(pid: int, port: int) -> bool:
    try:
        connections = psutil.Process(pid).net_connections("tcp")
    except psutil.Error:
        return False
    return any(one.status == psutil.CONN_LISTEN and one.laddr.port == port for one in connections)


def _end(experiment: Experiment) -> None:
    """Stop an experiment, and kill what is left of its processes."""
    process = experiment._proc
    left = []
    if process is not None:
        with contextlib.suppress(psutil.Error):
            left = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    try:
        experiment.stop()
    finally:
        for one in left:
            with contextlib.suppress(psutil.Error):
                one.terminate()
        _, alive = psutil.wait_procs(left, timeout=5)
        for one in alive:
            with contextlib.suppress(psutil.Error):
                one.kill()
