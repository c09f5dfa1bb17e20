"""Trials that die, through real NNI; and keys, which stand in no file afterwards."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from keys import KEYS, check_no_keys
from tiny import all_units, tiny_run

from nni_bertnas.config import to_yaml
from nni_bertnas.stages.run import Run
from nni_bertnas.stages.stage import find, load

pytestmark = pytest.mark.integration
long = pytest.mark.skipif("BERTNAS_LONG" not in os.environ, reason="two minutes; set BERTNAS_LONG=1")
# An operation whose trial is killed as by a system that is out of memory: of one unit always, of another once.
DEADLY = """
import os, signal, sys
from pathlib import Path
from torch import nn

class Deadly(nn.Identity):
    def __init__(self, hidden_size):
        super().__init__()
        frame, once = sys._getframe(), Path(os.environ.get("DEADLY_ONCE", ""))
        while frame is not None:
            unit = frame.f_locals.get("unit")
            if "NNI_TRIAL_JOB_ID" in os.environ and isinstance(unit, dict):
                if unit.get("block") == 0 and unit.get("depth") == 2:
                    os.kill(os.getpid(), signal.SIGKILL)
                if unit.get("block") == 1 and unit.get("depth") == 1 and not once.exists():
                    once.touch()
                    os.kill(os.getpid(), signal.SIGKILL)
            frame = frame.f_back

    def forward(self, x, mask):
        return super().forward(x)
"""


def bertnas(root: Path, command: str, **environment: str) -> subprocess.CompletedProcess:
    line = [str(Path(sys.executable).with_name("bertnas")), command, "study.yml"]
    paths = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    own = {**os.environ, "PYTHONPATH": paths, "DEADLY_ONCE": str(root / "once"), **environment}
    return subprocess.run(line, cwd=root, env=own, capture_output=True, text=True, timeout=400)


def deadly(root: Path) -> Run:
    operations = ["convolution_3", "deadly_operation.Deadly"]
    settings = {"strategy": "grid", "operations": operations, "depths": [1, 2], "epochs": 1}
    (root / "deadly_operation.py").write_text(DEADLY)
    run = tiny_run(root, cell=settings, tracking={"wandb": "offline"})
    (root / "study.yml").write_text(to_yaml(run.study))
    return run


@long
def test_a_trial_that_dies_is_tried_again_and_then_left_out_and_keys_stand_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    run, cell = deadly(tmp_path), load("cell")
    home = tmp_path / "home"
    home.mkdir()
    told = {**KEYS, "HOME": str(home), "WANDB_MODE": "offline"}
    first = bertnas(tmp_path, "cell", **told)
    assert first.returncode == 0, first
    assert (tmp_path / "once").exists()
    text = first.stderr
    assert text.count("it is tried once more") == 2, text
    assert text.count("cell block0_depth2 is left out, as it failed twice") == 1 and "trial.stderr" in text, text
    for unit in cell.units(run):
        lost = unit == {"block": 0, "depth": 2}
        assert (find(run, "cell", unit) is None) is lost
    second = bertnas(tmp_path, "block", **told)
    assert second.returncode == 0, second
    blocks = [run.read("block", {"block": block}) for block in range(2)]
    depths = [{one["depth"] for one in result["candidates"]} for result in blocks if result]
    assert depths[0] == {1} and len(depths) == 2
    third = bertnas(tmp_path, "cell", **told)
    assert third.returncode == 0 and "web UI" not in third.stdout, third
    assert "cell block0_depth2 is left out" in third.stderr and "to try it again remove" in third.stderr
    check_no_keys(tmp_path, [one.stdout + one.stderr for one in (first, second, third)])
    assert list(run.root.rglob("*.wandb")) and list(run.root.glob("nni/*/log/*"))  # they were there to hold them


def under(root: Path, word: str) -> list[psutil.Process]:
    """Processes that work for a study under `root`, and have a word in their command lines."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or ())
        if str(root) in line and word in line and process.pid != os.getpid():
            found.append(process)
    return found


@long
def test_a_manager_that_is_killed_is_one_message_and_the_same_command_goes_on(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, cell={"strategy": "random", "epochs": 1, "options": {"samples": 1}})
    (tmp_path / "study.yml").write_text(to_yaml(run.study))
    all_units(run, "teacher", "features")
    command = [str(Path(sys.executable).with_name("bertnas")), "cell", "study.yml"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=tmp_path, **pipes) as process:  # type: ignore[call-overload]
        assert any("web UI at" in line for line in process.stdout)
        (manager,) = under(run.root, "main.js")
        manager.kill()
        _, said = process.communicate(timeout=120)
    assert process.returncode == 1, said
    errors = [line for line in said.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and "NNI's manager has ended" in errors[0] and "run the same command again" in errors[0]
    deadline = time.monotonic() + 30
    while (left := under(run.root, "trial")) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert not left
    again = bertnas(tmp_path, "cell")
    assert again.returncode == 0 and len(run.results("cell")) == 2, again
