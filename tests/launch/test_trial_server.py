import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nni_bertnas.launch import trial_server

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux alone")
MODULE = """
import os, sys, time
before = sorted(set(sys.modules) & {"torch", "nni", "pytorch_lightning"})
print(sys.argv[1:], os.environ["WHO"], os.getcwd(), before, flush=True)
print("oops", file=sys.stderr)
if sys.argv[1] == "sleep":
    try:
        print("ready", flush=True)
        time.sleep(60)
    finally:
        open("was_stopped", "w").close()
if sys.argv[1] == "raise":
    raise ValueError("no such thing")
sys.exit(int(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def address() -> str:
    with trial_server.server() as one:
        yield one


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "probe.py").write_text(MODULE)
    return tmp_path


def start(address: str, folder: Path, *arguments: str) -> subprocess.Popen:
    environment = {**os.environ, "WHO": "client", "PYTHONPATH": str(Path(trial_server.__file__).parents[2])}
    return subprocess.Popen(
        [sys.executable, "-m", "nni_bertnas.launch.trial_server", address, "probe", *arguments],
        cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_a_trial_has_its_clients_environment_folder_output_and_exit_code(address: str, folder: Path) -> None:
    for code in (0, 3):
        process = start(address, folder, str(code), "b c")
        output, errors = process.communicate(timeout=60)
        assert output == f"['{code}', 'b c'] client {folder} ['pytorch_lightning', 'torch']\n"
        assert errors == "oops\n" and process.returncode == code
    process = start(address, folder, "raise")
    assert "ValueError: no such thing" in process.communicate(timeout=60)[1] and process.returncode == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_client_stops_its_trial(address: str, folder: Path, number: int) -> None:
    (folder / "probe.py").write_text("import signal, sys\nsignal.signal(15, lambda *_: sys.exit(143))\n" + MODULE)
    process = start(address, folder, "sleep")
    assert process.stdout is not None and "sleep" in process.stdout.readline()
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    process.wait(timeout=20)
    assert process.returncode == (143 if number == signal.SIGTERM else -signal.SIGKILL)
    deadline = time.monotonic() + 20
    while not (folder / "was_stopped").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_without_a_server_the_trial_runs_by_itself(folder: Path) -> None:
    process = start(str(folder / "nowhere" / "socket"), folder, "0")
    output, _ = process.communicate(timeout=60)
    assert output == f"['0'] client {folder} []\n" and process.returncode == 0


def test_the_server_ends_with_who_started_it(tmp_path: Path) -> None:
    script = (
        "import os, sys\n"
        "from nni_bertnas.launch import trial_server\n"
        "server = trial_server.server()\naddress = server.__enter__()\n"
        "print(address, flush=True)\ntrial_server._connect(address).close()\nos._exit(0)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    socket_path = done.stdout.strip()
    deadline = time.monotonic() + 20
    while subprocess.run(["pgrep", "-f", socket_path], capture_output=True, check=False).returncode == 0:
        assert time.monotonic() < deadline
        time.sleep(0.1)
