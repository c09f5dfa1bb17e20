"""Lines to other machines, over a real sshd on this machine's loopback."""

import socket
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import yaml
from machines import sshd

from nni_bertnas.errors import PhaseError
from nni_bertnas.launch.lines import Taken, line
from nni_bertnas.launch.machines import load_machines, ssh


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def command(folder: Path, machine: dict[str, object], port: int, target: int) -> list[str]:
    """What lets a port lead to another; both are of one loopback here."""
    fields = {"shared_folder": str(folder), "known_hosts": str(folder / "sshd" / "known_hosts"), "machines": [machine]}
    (folder / "machines.yml").write_text(yaml.safe_dump(fields))
    machines = load_machines(folder / "machines.yml")
    forward = ["-R", f"127.0.0.1:{port}:127.0.0.1:{target}"]
    return [*ssh(machines, machines.machines[0], *forward), "echo open && exec cat"]


def test_a_line_that_breaks_comes_back_and_ends_with_its_block(tmp_path: Path) -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", 0)) as listener, sshd(tmp_path / "sshd") as machine:
        words = command(tmp_path, machine, port, listener.getsockname()[1])
        listener.settimeout(2)

        def leads() -> bool:
            try:
                with socket.create_connection(("127.0.0.1", port), 2) as one:
                    listener.accept()[0].sendall(b"ok")
                    return one.recv(2) == b"ok"
            except OSError:  # refused, closed at once, or accepted by nobody
                return False

        def await_that(arrived: Callable[[], bool]) -> None:
            deadline = time.monotonic() + 20
            while not arrived():
                assert time.monotonic() < deadline
                time.sleep(0.2)

        with line(words, "there"):
            assert leads()
            (broken,) = [one for one in psutil.Process().children() if one.cmdline() == words]
            broken.kill()
            broken.wait()
            await_that(leads)
        await_that(lambda: not leads())
        assert not [one for one in psutil.Process().children() if one.cmdline() == words]
        with socket.create_server(("127.0.0.1", port)), pytest.raises(Taken), line(words, "there"):
            pass


def test_a_machine_that_is_not_there_is_one_error(tmp_path: Path) -> None:
    with sshd(tmp_path / "sshd") as machine:
        pass
    with (
        pytest.raises(PhaseError, match=r"there: no line to it \(.*refused"),
        line(command(tmp_path, machine, free_port(), 9), "there"),
    ):
        pass
