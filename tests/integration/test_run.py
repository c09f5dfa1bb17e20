"""`bertnas run` through real NNI on the tiny study."""

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from keys import KEYS, check_no_keys
from tiny import tiny_run
from wandb_log import read_offline_runs

from nni_bertnas.config import to_yaml
from nni_bertnas.tracking.histories import HISTORY, read_history

TENSORBOARD = importlib.util.find_spec("tensorboard") is not None  # an extra
pytestmark = pytest.mark.integration


def start_command(name: str) -> list[str]:
    return [str(Path(sys.executable).with_name("bertnas")), name, "study.yml"]


def start(root: Path, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [*start_command("run"), *arguments],
        cwd=root,
        env={**os.environ, **KEYS},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        # What runs in the background of a shell ignores it, and so would all that it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def nni_processes(root: Path) -> list[str]:
    """Command lines of running processes that work for a study under `root`."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            line = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(root) in line and int(process.name) != os.getpid() and ("nni" in line or "trials." in line):
            found.append(line)
    return found


def check_tracking(root: Path) -> None:
    """Every unit of work is one W&B run in the study's group, with its losses, rates, metrics and parameter counts."""
    runs = {run["name"]: (run, history) for run, history in read_offline_runs(root)}
    assert set(runs) == {
        "teacher-sst2", "features-sst2",
        "cell-block0_depth1", "cell-block1_depth1", "block-block0", "block-block1", "supernet-seed0",
    }  # fmt: skip
    for name, (run, history) in runs.items():
        assert run["group"] == "tiny" and run["job_type"] == name.split("-")[0]
        epochs = [row for row in history if "train_loss" in row]
        assert all("learning_rate" in row for row in epochs)
        assert bool(epochs) == (run["job_type"] != "features")
        if run["job_type"] in ("teacher", "features"):
            assert history[-1]["final/seconds"] >= 0
        else:
            assert history[-1]["final/num_params"] > 0 and "final/default" in history[-1]
        kept = read_history(root / HISTORY, name.removesuffix("-sst2"))
        assert [row["train_loss"] for row in kept if "train_loss" in row] == [row["train_loss"] for row in epochs]
        assert bool(list((root / "tensorboard" / name.removesuffix("-sst2")).glob("events.*"))) == TENSORBOARD
    assert any("probability/layer_0/attention_4" in row for row in runs["cell-block0_depth1"][1])
    assert all("dev_accuracy" in row for row in runs["supernet-seed0"][1] if "train_loss" in row)


def test_run_reuse_force_and_interrupt(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, tracking={"wandb": "offline"})
    (tmp_path / "study.yml").write_text(to_yaml(run.study))
    first = start(tmp_path)
    text, _ = first.communicate(timeout=400)
    assert first.returncode == 0, text
    for part in (
        "web UI at http://127.0.0.1:",
        "cell block0_depth1: score ",
        "glue_dev accuracy",
        "wall time: teacher",
        "student:",
    ):
        assert part in text, text
    assert not nni_processes(tmp_path)
    check_tracking(run.root)
    assert list(run.root.rglob("*.wandb")) and list(run.root.glob("nni/*/log/*"))
    check_no_keys(tmp_path, [text])
    log = (run.root / "bertnas.log").read_text()
    assert all(line in log for line in text.splitlines() if line.startswith(("cell", "block", "wall time")))
    assert "[cell-block0_depth1]" in log  # what a trial's own process told
    told = subprocess.run(
        [*start_command("status"), "--json"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert all(one["done"] == one["units"] and one["seconds"] > 0 for one in json.loads(told.stdout)["stages"])
    results = run.folder("supernet", {"seed": 0}) / "result.json"
    made = results.stat().st_mtime_ns

    second = start(tmp_path)
    text, _ = second.communicate(timeout=100)
    assert second.returncode == 0 and text.count("(reused)") == 7, text
    assert results.stat().st_mtime_ns == made

    for number in (signal.SIGINT, signal.SIGTERM):  # SIGHUP goes the way of SIGTERM
        check_end(tmp_path, number)
        assert not results.exists() and not list(run.root.glob("*/.*.*/"))


def check_end(root: Path, number: signal.Signals) -> None:
    """A signal in the middle of a phase leaves no process and no taken port."""
    process = start(root, "--force", "block")
    assert process.stdout is not None
    address = next(line for line in process.stdout if line.startswith("block: 2 trial(s)")).split("127.0.0.1:")[1]
    deadline = time.monotonic() + 60
    while not any("trials.block" in line for line in nni_processes(root)):  # until a trial is under way
        assert time.monotonic() < deadline
        time.sleep(0.2)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does
    else:
        process.send_signal(number)
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number and "interrupted" in text, text
    deadline = time.monotonic() + 20
    while (left := nni_processes(root)) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert not left
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", int(address.split("/")[0]))) != 0
