"""Files of machines, and what is asked of the machines before anything runs there."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nni_node
import pytest
import yaml
from machines import sshd
from tiny import tiny_run

from nni_bertnas.config import to_yaml
from nni_bertnas.errors import ConfigError, PhaseError
from nni_bertnas.launch import remote as remote_module
from nni_bertnas.launch.lines import Line
from nni_bertnas.launch.loopback import write_python
from nni_bertnas.launch.machines import load_machines
from nni_bertnas.launch.manager import MachineLost
from nni_bertnas.launch.remote import Remote
from nni_bertnas.stages.stage import load

TEMPLATE = Path(__file__).parents[2] / "experiment_configs" / "remote" / "machines.yml"
PYTHON = str(Path(sys.executable).parent)


def write(folder: Path, *machines: dict[str, Any], **more: Any) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "machines.yml"
    path.write_text(yaml.safe_dump({"shared_folder": str(folder), "machines": list(machines), **more}))
    return path


def test_the_template_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ConfigError, match=r"key_file: .*id_ed25519 is not there; ssh-keygen"):
        load_machines(TEMPLATE)
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh" / "id_ed25519").touch()
    found = load_machines(TEMPLATE)
    assert [str(one) for one in found.machines] == ["me@node1.example.org:22", "me@node2.example.org:22"]
    assert found.known_hosts == str(tmp_path / ".ssh" / "known_hosts")


def test_every_problem_is_reported_at_once(tmp_path: Path) -> None:
    one = {"host": "-oProxyCommand=x", "user": "me", "python": "venv/bin", "password": "secret"}
    with pytest.raises(ConfigError) as caught:
        load_machines(write(tmp_path, one, trials=0))
    for part in ("4 problem(s)", "machines.0.host", "machines.0.python", "machines.0.password: unknown key", "trials:"):
        assert part in str(caught.value)
    assert "secret" not in str(caught.value).replace("'secret'", "")
    twice = {"host": "a", "user": "me", "python": "/venv/bin", "key_file": str(tmp_path)}
    with pytest.raises(ConfigError, match="named twice"):
        load_machines(write(tmp_path, twice, twice))
    with pytest.raises(ConfigError, match="either all have gpus or none"):
        load_machines(write(tmp_path, twice, {**twice, "host": "b", "gpus": [0]}))


def test_paths_have_to_hold_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tiny_run(tmp_path / "elsewhere")
    shared = tmp_path / "shared"
    machine = {"host": "a", "user": "me", "python": "/venv/bin", "key_file": __file__}
    machines = load_machines(write(shared, machine))
    study = shared / "study.yml"
    with pytest.raises(ConfigError, match=r"the folder that bertnas is run in: .* is not under shared_folder"):
        Remote(machines, run, study)
    monkeypatch.chdir(shared)
    with pytest.raises(ConfigError, match=r"runs_dir: .* is not under shared_folder"):
        Remote(machines, run, study)
    run = tiny_run(tmp_path / "elsewhere", runs_dir="runs")
    with pytest.raises(ConfigError, match=r"a path of the study: .*elsewhere/data is not under"):
        Remote(machines, run, study)
    Remote(machines, tiny_run(shared), study)


def test_the_python_for_nni_keeps_the_environment_and_is_it_otherwise(tmp_path: Path) -> None:
    write_python(tmp_path / "bin", PYTHON)
    (tmp_path / "pip.log").touch()

    def say(*words: str) -> str:
        environment = {**os.environ, "NODE_OPTIONS": "--no-warnings", "PIP_LOG": str(tmp_path / "pip.log")}
        command = [str(tmp_path / "bin" / "python"), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.strip()

    assert say("-m", "pip", "install", "nni", "--upgrade") == "bertnas keeps this environment as it is"
    assert (tmp_path / "pip.log").read_text() == ""  # pip has not run
    assert say("-c", "import sys; print(sys.executable, sys.argv[1:])", "a b") == f"{PYTHON}/python ['a b']"
    node = str(Path(nni_node.__path__[0]) / "node")
    script = (
        "require('net').createServer().listen(0, function () { console.log(this.address().address); this.close() })"
    )
    code = f"import subprocess; subprocess.run([{node!r}, '-e', {script!r}], check=True)"
    assert say("-c", code) == "127.0.0.1"


@pytest.fixture
def host(tmp_path: Path) -> Iterator[dict[str, Any]]:
    with sshd(tmp_path / "sshd") as machine:
        yield machine


def test_a_machine_that_will_not_do_is_said_before_anything_runs(
    tmp_path: Path, host: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = tiny_run(tmp_path)
    study = tmp_path / "study.yml"
    study.write_text(to_yaml(run.study))
    known = {"known_hosts": str(tmp_path / "sshd" / "known_hosts")}

    def prepare(**changes: Any) -> Remote:
        more = {**known, **{name: changes.pop(name) for name in list(changes) if name in known}}
        remote = Remote(load_machines(write(tmp_path, {**host, **changes}, **more)), run, study)
        remote.prepare()
        return remote

    (tmp_path / "nobody").touch()
    with pytest.raises(PhaseError, match=r"Host key verification failed.*ssh-keyscan -p"):
        prepare(known_hosts=str(tmp_path / "nobody"))
    with pytest.raises(PhaseError, match=r"machines.python must be the folder of an environment's python"):
        prepare(python="/nowhere/bin")
    with pytest.raises(PhaseError, match=r"(?i)permission denied.*try: ssh"):
        prepare(key_file=str(tmp_path / "sshd" / "host"))
    study.unlink()
    with pytest.raises(PhaseError, match=r"study.yml is not there; put it under"):
        prepare()
    study.write_text(to_yaml(run.study))
    remote = prepare()
    assert remote.elsewhere == set()  # its loopback is this one
    assert not list(remote.tools.glob(".seen*"))
    (folder,) = remote.tools.glob("machine*")
    assert PYTHON in (folder / "python").read_text()


def test_a_machine_that_forwards_no_port_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with sshd(tmp_path / "sshd", AllowTcpForwarding="no") as machine:
        path = write(tmp_path, machine, known_hosts=str(tmp_path / "sshd" / "known_hosts"))
        remote = Remote(load_machines(path), tiny_run(tmp_path), tmp_path / "study.yml")
        remote.elsewhere.add(0)
        remote.forks = str(tmp_path / "forks")
        with pytest.raises(ConfigError, match="AllowTcpForwarding yes or remote"), remote.hold_port(8700):
            pass


def test_what_a_machine_was_at_goes_to_the_next_and_of_the_last_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = tmp_path / "key"
    key.touch()
    hosts = [{"host": name, "user": "me", "python": "/venv/bin", "key_file": str(key)} for name in ("a", "b", "c")]
    monkeypatch.chdir(tmp_path)
    remote = Remote(load_machines(write(tmp_path, *hosts)), tiny_run(tmp_path), tmp_path / "study.yml")
    codes = {"a": 255, "b": 0, "c": 1}  # of ssh, which has 255 where it does not get there
    monkeypatch.setattr(remote_module, "ssh", lambda _, machine: ["sh", "-c", f"exit {codes[machine.host]}"])
    remote.make(load("teacher"))
    assert remote.lost == {0}
    remote.lines = {number: Line() for number in (1, 2)}
    remote.check()
    remote.lines[1].broken = time.monotonic() - 30
    remote.check()
    remote.lines[1].broken -= 31
    with pytest.raises(MachineLost, match="me@b:22 has not answered for a minute; what it was at goes to the others"):
        remote.check()
    remote.check()
    with pytest.raises(PhaseError, match=r"teacher failed on me@c:22 \(exit code 1\)"):
        remote.make(load("teacher"))
    codes["c"] = 255
    with pytest.raises(PhaseError, match=r"no machine is left: me@c:22.*run the same command again"):
        remote.make(load("teacher"))
