"""A process that has loaded what every trial needs, and forks itself for each: none loads it anew.

Loading torch and Lightning takes several seconds, as long as many a trial. `bertnas` starts the server beside an
experiment; a trial is then `python -m nni_bertnas.launch.trial_server ADDRESS MODULE ARGUMENTS`, which hands its
environment, folder and files to the server's fork, passes on the signal to stop, and ends as that ends. Where no server
answers, as on another machine, the trial loads everything by itself. NNI is never loaded beforehand: it reads a
trial's environment when it is loaded.
"""

import array
import contextlib
import importlib
import importlib.util
import json
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

_MODULES = (
    "scipy.stats",
    "json_tricks",
    "torch._dynamo",
    "nni_bertnas.training.student",  # torch, Lightning
    "nni_bertnas.training.teacher",  # transformers
    "search_space.listing",
)
_PATIENCE_SECONDS = 30.0
_FILES = 3  # stdin, stdout, stderr
_SERVER = "--serve"


@contextlib.contextmanager
def server() -> Iterator[str | None]:
    """Run a server as long as the block lasts.

    Yields:
        Its address; None where processes cannot be forked safely.
    """
    if sys.platform != "linux":
        yield None
        return
    folder = Path(tempfile.mkdtemp(prefix="bertnas-"))  # nobody else may connect
    address = str(folder / "socket")
    command = [sys.executable, "-m", __name__, _SERVER, address]
    # A session of its own: Ctrl-C is for whoever started the trials. Its input tells it when that one is gone.
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as process:
        try:
            yield address
        finally:
            process.terminate()
            shutil.rmtree(folder, ignore_errors=True)
            _end_trials(process.pid)


def _end_trials(group: int) -> None:
    """End what is left of the server's group of processes: trials whose manager was killed, as NNI ends all others."""
    for number, patience in ((0, 3.0), (signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
        left = list(_members(group))
        if not left:
            return
        for one in left:
            with contextlib.suppress(psutil.Error):
                one.send_signal(number)
        psutil.wait_procs(left, timeout=patience)


def _members(group: int) -> Iterator[psutil.Process]:
    for one in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if os.getpgid(one.pid) == group and one.pid != group and one.status() != psutil.STATUS_ZOMBIE:
                yield one


def _serve(address: str) -> None:
    try:
        for name in _MODULES:
            importlib.import_module(name)
        if importlib.util.find_spec("tensorboard") is not None:  # an extra
            importlib.import_module("torch.utils.tensorboard")
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel buries the dead
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"{address}.new")
            listener.listen()
            os.rename(f"{address}.new", address)
            while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
                connection, _ = listener.accept()
                if os.fork() == 0:
                    listener.close()
                    return _become_trial(connection)
                connection.close()
        _end_trials(os.getpid())  # who started this is gone, and with it whom they work for
    except Exception:
        shutil.rmtree(Path(address).parent, ignore_errors=True)  # nobody need wait
        raise


def _become_trial(connection: socket.socket) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _, ancillary, *_ = connection.recvmsg(1, socket.CMSG_SPACE(_FILES * 4))
    files = array.array("i", ancillary[0][2])
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    request = json.loads(connection.makefile("rb").readline())
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    sys.path[0] = request["folder"]
    threading.Thread(target=_end_with_client, args=(connection,), daemon=True).start()
    code = _run(request["module"], request["arguments"])
    sys.stdout.flush()
    sys.stderr.flush()
    connection.sendall(str(code).encode())  # the connection closes when this process has ended


def _end_with_client(connection: socket.socket) -> None:
    connection.recv(1)
    os.kill(os.getpid(), signal.SIGTERM)


def _run(module: str, arguments: list[str]) -> int:
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as error:
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


def _connect(address: str) -> socket.socket | None:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    connection = socket.socket(socket.AF_UNIX)
    while Path(address).parent.exists() and time.monotonic() < deadline:
        try:
            connection.connect(address)
        except OSError:
            time.sleep(0.02)
        else:
            return connection
    return None


def _request(address: str, module: str, arguments: list[str]) -> int:
    connection = _connect(address)
    if connection is None:
        return _run(module, arguments)

    def stop(number: int, frame: Any) -> None:
        connection.shutdown(socket.SHUT_WR)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    files = array.array("i", range(_FILES))
    connection.sendmsg([b"f"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, files)])
    request = {"module": module, "arguments": arguments, "folder": os.getcwd(), "environment": dict(os.environ)}
    connection.sendall(json.dumps(request).encode() + b"\n")
    answer = b""
    while part := connection.recv(16):
        answer += part
    return int(answer) if answer else 1  # killed


if __name__ == "__main__":
    if sys.argv[1] == _SERVER:
        _serve(sys.argv[2])
    else:
        sys.exit(_request(sys.argv[1], sys.argv[2], sys.argv[3:]))
