"""Ports that are held."""

import socket

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


def test_no_port_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nni_bertnas.launch.manager._is_free", lambda port: False)
    with pytest.raises(ConfigError, match=r"nni.port: no free port from 18200 on"), hold_port(18200):
        pass
