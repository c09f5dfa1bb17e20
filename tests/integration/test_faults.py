"""Trials that die, through real NNI; and keys, which stand in no file afterwards."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from keys import KEYS, check_no_keys
from tiny import tiny_run

from nni_bertnas.config import to_yaml
from nni_bertnas.stages.run import Run
from nni_bertnas.stages.stage import find, load

pytestmark = pytest.mark.integration
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


@pytest.mark.long
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
