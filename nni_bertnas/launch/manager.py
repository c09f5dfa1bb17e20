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
_LOST_SECONDS = 60.0  # in which a killed manager's tuner may look for it at its port, and disturb another one there
_families: dict[str, list[psutil.Process]] = {}  # by experiment: what its manager had started when it was last seen

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
            held = Path(lock.lock_file).with_suffix(".held")
            if not _is_haunted(held) and all(_is_free(one) for one in range(port, port + beside + 1)):
                with _held(held):
                    yield port
                return
        finally:
            lock.release()
    raise ConfigError(f"nni.port: no free port from {first} on; choose another")


@contextlib.contextmanager
def _held(mark: Path) -> Iterator[None]:
    """Leave a mark as long as the block lasts, and for ever where the process is killed meanwhile."""
    mark.write_text("held", encoding="utf-8")
    try:
        yield
    finally:
        mark.unlink(missing_ok=True)


def _is_haunted(mark: Path) -> bool:
    """Whether who held a port was killed, and that was found out less than a minute ago."""
    try:
        if mark.read_text(encoding="utf-8") == "held":
            mark.write_text("lost", encoding="utf-8")
        return time.time() - mark.stat().st_mtime < _LOST_SECONDS
    except OSError:
        return False


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


class ManagerLost(PhaseError):
    """NNI's manager has ended, and nobody here has ended it."""


class MachineLost(PhaseError):
    """A machine that trials run on is not there any more, while others are."""


@contextlib.contextmanager
def talking(experiment: Experiment) -> Iterator[None]:
    """Ask an experiment's own manager something inside the block: what answers on its port is that one.

    Raises:
        ManagerLost: It is not there, or goes meanwhile.
    """
    check_alive(experiment)
    try:
        yield
    except (OSError, ValueError):  # of requests, and of NNI where an answer ends early
        time.sleep(1)  # a process that is killed closes its port before it is gone
        check_alive(experiment)
        raise


def check_alive(experiment: Experiment) -> None:
    """Whether an experiment's own manager is still there.

    Raises:
        ManagerLost: It is not.
    """
    process = experiment._proc
    if process is None or process.poll() is not None:
        how = "" if process is None else f" with code {process.returncode}"
        folder = Path(experiment.config.experiment_working_directory, experiment.id, "log")
        raise ManagerLost(f"NNI's manager has ended{how}; see {folder}; run the same command again to go on")
    with contextlib.suppress(psutil.Error):
        _families[experiment.id] = psutil.Process(process.pid).children(recursive=True)


@contextlib.contextmanager
def _environment() -> Iterator[None]:
    """What NNI, its manager and the trials find in their environment.

    The web UI has no password: it is kept on this machine. The manager ends when this process is killed. No proxy
    stands between processes of one machine. NNI keeps a list of experiments in the user's home; where that cannot be
    written, in the folder of temporary files.
    """
    variables = {"NODE_OPTIONS": " ".join(filter(None, [os.environ.get("NODE_OPTIONS"), node_option()]))}
    variables["BERTNAS_OWNER"] = str(os.getpid())
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
                code = started[-1].returncode
                kind = ManagerLost if code < 0 else PhaseError  # killed, or it does not start at all
                raise kind(f"NNI's manager ended with code {code} before it listened")
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
    left = _families.pop(experiment.id, [])
    if process is not None and process.poll() is not None:
        experiment._proc = None  # NNI would ask it to stop, at length
    elif process is not None:
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
