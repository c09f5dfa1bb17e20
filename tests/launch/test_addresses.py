"""Who reaches NNI's ports: asked from a second network namespace, which has no other way than the machine's address."""

import io
import json
import os
import shlex
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml
from machines import Namespace, namespace
from nni.experiment import Experiment
from nni.experiment.config import AlgorithmConfig, ExperimentConfig
from rich.console import Console

from nni_bertnas.cli import main
from nni_bertnas.cli.stage import _open_to_others
from nni_bertnas.launch.manager import hold_port, manager
from nni_bertnas.launch.public import public_portal
from nni_bertnas.report.progress import Teller
from nni_bertnas.tracking.logs import open_log

TOKEN = "not-guessed"


@pytest.fixture(scope="module")
def outside() -> Iterator[Namespace]:
    with namespace() as place:
        yield place


def idle(folder: Path) -> ExperimentConfig:
    """An experiment whose one trial sleeps."""
    config = ExperimentConfig("local")
    config.trial_command, config.trial_code_directory = "sleep 100", folder
    config.trial_concurrency, config.max_trial_number = 1, 1
    config.tuner, config.search_space = AlgorithmConfig(name="Random"), {"x": {"_type": "choice", "_value": [1]}}
    config.experiment_working_directory = folder
    return config


def ports_of(group: int) -> set[int]:
    """TCP ports that the processes of a group listen on."""
    found = set()
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == group:
                found |= {one.laddr.port for one in process.net_connections("tcp") if one.status == "LISTEN"}
        except (psutil.Error, OSError):
            continue
    return found


def ask(outside: Namespace, port: int, *requests: tuple[str, str, dict[str, str]]) -> list[int]:
    """The statuses that requests from over there are answered with: method, path, headers."""
    script = (
        "import http.client, json, sys\nfor method, path, headers in json.loads(sys.argv[3]):\n"
        "    line = http.client.HTTPConnection(sys.argv[1], int(sys.argv[2]), timeout=20)\n"
        "    line.request(method, path, headers=headers)\n    print(line.getresponse().status)"
    )
    return [int(text) for text in outside.python(script, outside.here, str(port), json.dumps(requests)).split()]


def test_what_listens_everywhere_is_reached_from_outside(outside: Namespace) -> None:
    """Or the other tests would say nothing."""
    with socket.socket() as listener:
        listener.bind(("0.0.0.0", 0))
        listener.listen()
        assert outside.connects(listener.getsockname()[1])


def test_the_portal_is_refused_and_public_asks_for_a_token(tmp_path: Path, outside: Namespace) -> None:
    experiment = Experiment(idle(tmp_path))
    with manager(experiment, 8520) as port:
        ports = ports_of(experiment._proc.pid)
        assert port in ports
        assert not [one for one in ports if outside.connects(one)]
        with public_portal(f"http://127.0.0.1:{port}", TOKEN) as address:
            public = int(address.rpartition(":")[2])
            api = "/api/v1/nni/experiment"
            bearer, cookie = {"Authorization": f"Bearer {TOKEN}"}, {"Cookie": f"bertnas_token={TOKEN}"}
            guessed = {"Authorization": "Bearer guessed", "Cookie": "bertnas_token=guessed"}
            without = ("GET", api, {}), ("GET", f"{api}?token=guessed", {}), ("GET", api, guessed), ("DELETE", api, {})
            assert ask(outside, public, *without) == [401] * 4
            look = ("GET", f"/?token={TOKEN}", {}), ("GET", api, cookie), ("GET", "/", bearer)
            assert ask(outside, public, *look) == [303, 200, 200]
            change = [(method, api, bearer) for method in ("DELETE", "PUT", "POST")]
            assert ask(outside, public, *change, ("GET", "/netron/", bearer)) == [405, 405, 405, 404]
            assert experiment.get_status() in ("INITIALIZED", "RUNNING")
        assert not outside.connects(public)


def test_a_token_leads_to_a_clean_address_and_nowhere_else() -> None:
    with public_portal("http://127.0.0.1:9", TOKEN) as address:
        port = int(address.rpartition(":")[2])

        class Stay(urllib.request.HTTPRedirectHandler):
            def redirect_request(self, *arguments: object) -> None:
                return None

        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.build_opener(Stay, urllib.request.ProxyHandler({})).open(
                f"http://127.0.0.1:{port}/oview?a=1&token={TOKEN}"
            )
        assert caught.value.code == 303 and caught.value.headers["Location"] == "/oview?a=1"
        cookie = caught.value.headers["Set-Cookie"]
        assert f"={TOKEN};" in cookie and "HttpOnly" in cookie and "SameSite=Strict" in cookie
        request = urllib.request.Request(f"http://127.0.0.1:{port}/", headers={"Authorization": f"Bearer {TOKEN}"})
        with pytest.raises(urllib.error.HTTPError, match="502"):
            urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request)


def test_the_token_stands_on_the_terminal_alone(tmp_path: Path) -> None:
    terminal = Console(file=io.StringIO(), width=200)
    with open_log(tmp_path / "log"):
        _open_to_others("http://here:1", TOKEN, Teller(terminal))
    assert f"http://here:1/?token={TOKEN}" in terminal.file.getvalue()
    log = (tmp_path / "log").read_text()
    assert "WARNING: the web UI can be seen" in log and TOKEN not in log


def test_one_line_keeps_plain_nnictl_on_its_machine(
    tmp_path: Path, outside: Namespace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["loopback"]) == 0
    line = capsys.readouterr().out
    (tmp_path / "code").mkdir()
    config = idle(tmp_path / "code").canonical_copy().json()
    (tmp_path / "idle.yml").write_text(yaml.safe_dump(config | {"experimentWorkingDirectory": str(tmp_path / "nni")}))
    nnictl = shlex.quote(str(Path(sys.executable).with_name("nnictl")))
    environment = {**os.environ, "HOME": str(tmp_path)}

    def shell(text: str, check: bool = True) -> int:
        return subprocess.run(
            text, shell=True, check=check, env=environment, cwd=tmp_path, stdout=subprocess.DEVNULL, timeout=120
        ).returncode

    with hold_port(8560) as port:
        start = f"{line}{nnictl} create --config idle.yml --port {port}"
        try:
            # nnictl gives its manager three seconds to answer, which a busy machine does not have.
            while shell(start, check=False) != 0:
                pass
            with socket.create_connection(("127.0.0.1", port), 5):
                assert not outside.connects(port)
        finally:
            shell(f"{nnictl} stop --port {port}")
