"""A study on another machine: a network namespace whose loopback is its own, behind a real sshd."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from machines import LOOPBACK, Namespace, namespace, sshd
from tiny import tiny_run, without_times

from nni_bertnas.config import to_yaml
from nni_bertnas.stages.run import Run

pytestmark = [
    pytest.mark.remote,
    pytest.mark.skipif("BERTNAS_REMOTE" not in os.environ, reason="five minutes; set BERTNAS_REMOTE=1"),
    pytest.mark.timeout(1200),
]
STAGES = ("teacher", "features", "cell", "block", "supernet")
THREADS = {"OMP_NUM_THREADS": "1"}  # as over there: results are equal to the bit where threads are as many


@pytest.fixture
def elsewhere() -> Iterator[Namespace]:
    with namespace() as place:
        yield place


def write_study(root: Path, name: str, port: int) -> Run:
    """A study file of that name, and a run folder; data and model are the same for all names."""
    run = tiny_run(root, runs_dir=str(root / name), nni={"concurrency": 2, "threads": 1, "port": port})
    (root / f"{name}.yml").write_text(to_yaml(run.study))
    return run


def start(root: Path, name: str, *arguments: str) -> subprocess.Popen:
    command = [str(Path(sys.executable).with_name("bertnas")), "run", f"{name}.yml", *arguments]
    environment = {**os.environ, **THREADS}
    return subprocess.Popen(
        command, cwd=root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def write_machines(root: Path, key: Path, *machines: dict[str, Any]) -> None:
    fields = {"shared_folder": str(root), "known_hosts": str(key / "known_hosts"), "machines": list(machines)}
    (root / "machines.yml").write_text(yaml.safe_dump({**fields, "trials": 2}))


def contents(run: Run) -> dict[str, Any]:
    """All results of a study, and all weights, by their place in its folder."""
    found: dict[str, Any] = {}
    for stage in STAGES:
        for path in sorted((run.root / stage).rglob("*")):
            if path.name == "result.json":
                found[str(path.relative_to(run.root))] = without_times(json.loads(path.read_text()))
            elif path.suffix in (".safetensors", ".pt"):
                found[str(path.relative_to(run.root))] = path.read_bytes()
    return found


def keepers(home: Path) -> list[psutil.Process]:
    """What is left of NNI's work for somebody's home."""
    return [one for one in psutil.process_iter() if str(home) in " ".join(_cmdline(one))]


def _cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_a_study_elsewhere_is_the_local_one_and_no_port_is_open(tmp_path: Path, elsewhere: Namespace) -> None:
    here, there = (write_study(tmp_path, name, 8640) for name in ("here", "there"))
    local = start(tmp_path, "here")
    said, _ = local.communicate(timeout=500)
    assert local.returncode == 0, said
    listening: dict[int, str] = {}
    reached: set[int] = set()
    with sshd(tmp_path / "sshd", elsewhere) as machine:
        write_machines(tmp_path, tmp_path / "sshd", machine)
        process = start(tmp_path, "there", "--on", "machines.yml", "--public")
        while process.poll() is None:
            listening |= elsewhere.listening()
            reached |= {port for port in listening if port != machine["port"] and connects(elsewhere.there, port)}
            assert not elsewhere.connects(8640)  # NNI's page, from there, but through the tunnel
            time.sleep(1)
        said = process.stdout.read()
        assert process.returncode == 0, said
    (token,) = set(re.findall(r"/\?token=(\S+)", said))
    assert said.count(token) == 3 and said.count("WARNING: the web UI can be seen") == 3  # phases
    others = {port: address for port, address in listening.items() if port != machine["port"]}
    assert 8640 in others and len(others) >= 4  # the way back, and a trial keeper of each of three phases
    assert set(others.values()) == {LOOPBACK}
    assert not reached
    assert contents(there) == contents(here)
    assert len(contents(there)) > 10
    jobs = sorted((tmp_path / "sshd" / "home" / "nni-experiments").glob("*/environments/*/trials/*"))
    assert len(jobs) == 2 + 2 + 1  # cells, blocks and the student were made there
    secrets = (token, (tmp_path / "sshd" / "key").read_text().splitlines()[3])  # the first are alike in all keys
    written = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "key"]
    assert not [path for path in written if any(secret.encode() in path.read_bytes() for secret in secrets)]


def connects(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), 5).close()
    except ConnectionRefusedError:
        return False
    return True


@contextlib.contextmanager
def two_machines(root: Path, elsewhere: Namespace) -> Iterator[list[Path]]:
    """One has a loopback of its own, the other this one; yields the homes of who logs in."""
    with ExitStack() as stack:
        places = {"sshd0": elsewhere, "sshd1": None}
        machines = [stack.enter_context(sshd(root / name, place)) for name, place in places.items()]
        known = "".join((root / name / "known_hosts").read_text() for name in places)
        (root / "sshd0" / "known_hosts").write_text(known)
        write_machines(root, root / "sshd0", *machines)
        yield [root / name / "home" for name in places]


def test_two_machines_share_the_work_and_leave_nothing_behind(tmp_path: Path, elsewhere: Namespace) -> None:
    """In the middle `bertnas` is told to end, and goes on."""
    run = write_study(tmp_path, "study", 8740)
    with two_machines(tmp_path, elsewhere) as homes:
        ended = start(tmp_path, "study", "--on", "machines.yml")
        while not run.results("cell"):
            assert ended.poll() is None, ended.stdout.read()
            time.sleep(0.2)
        ended.send_signal(signal.SIGTERM)
        ended.communicate(timeout=120)
        made = {file: file.stat().st_mtime_ns for file in run.root.glob("*/**/result.json")}
        await_none(lambda: [one for home in homes for one in keepers(home)])
        process = start(tmp_path, "study", "--on", "machines.yml")
        said, _ = process.communicate(timeout=900)
        assert process.returncode == 0, said
        assert {file: file.stat().st_mtime_ns for file in made} == made
        assert all(list(home.glob("nni-experiments/*/environments/*/trials/*")) for home in homes)
        await_none(lambda: [one for home in homes for one in keepers(home)])
    assert len(run.results("supernet")) == 1


def test_a_machine_that_goes_leaves_its_work_to_the_other(tmp_path: Path, elsewhere: Namespace) -> None:
    """All processes of the first are killed while a cell is made there, and nobody is there to be asked."""
    run = write_study(tmp_path, "study", 8840)
    with two_machines(tmp_path, elsewhere) as homes:
        process = start(tmp_path, "study", "--on", "machines.yml")
        while not list(homes[0].glob("nni-experiments/*/environments/*/trials/*")):
            assert process.poll() is None, process.stdout.read()
            time.sleep(0.2)
        made = {file: file.stat().st_mtime_ns for file in run.root.glob("*/**/result.json")}
        gone = subprocess.run(["ip", "netns", "pids", elsewhere.name], capture_output=True, text=True, check=True)
        for number in gone.stdout.split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(number), signal.SIGKILL)
        said, _ = process.communicate(timeout=900)
        assert process.returncode == 0, said
    for part in ("the line to another machine is broken", "what it was at goes to the others"):
        assert said.count(part) == 1, said
    assert "Traceback" not in said and "left out" not in said
    assert made and {file: file.stat().st_mtime_ns for file in made} == made
    assert {name: len(run.results(name)) for name in ("cell", "block", "supernet")} == {
        "cell": 2, "block": 2, "supernet": 1
    }  # fmt: skip


def await_none(left: Callable[[], list[psutil.Process]]) -> None:
    deadline = time.monotonic() + 60  # a keeper whose manager is gone gives up after a quarter of a minute
    while found := left():
        assert time.monotonic() < deadline, [_cmdline(one) for one in found]
        time.sleep(1)
