"""Ports that are held."""

import socket
import subprocess
import sys

import pytest

from nni_bertnas.errors import ConfigError
from nni_bertnas.launch.manager import hold_port


def test_a_port_is_held_from_its_choice_on() -> None:
    with hold_port(18200) as one, hold_port(18200) as other:
        assert 18200 <= one < other
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", other + 1))
            listener.listen()
            with hold_port(other + 1) as third:
                assert third > other + 1
    with hold_port(18200) as again:
        assert again == one


def test_the_port_of_a_run_that_was_killed_is_left_alone_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    hold = "with hold_port(18300) as port: print(port, flush=True); input()"
    script = f"from nni_bertnas.launch.manager import hold_port\n{hold}"
    process = subprocess.Popen([sys.executable, "-c", script], stdin=-1, stdout=-1, text=True)
    assert process.stdout is not None
    first = int(process.stdout.readline())
    process.kill()
    process.communicate()
    with hold_port(first) as other:
        assert other > first
    monkeypatch.setattr("nni_bertnas.launch.manager._LOST_SECONDS", 0.0)
    with hold_port(first) as again:
        assert again == first


def test_no_port_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nni_bertnas.launch.manager._is_free", lambda port: False)
    with pytest.raises(ConfigError, match=r"nni.port: no free port from 18200 on"), hold_port(18200):
        pass
