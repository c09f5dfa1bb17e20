"""NNI in surroundings that are not its own: other studies at the same moment, proxies, odd folders, slow machines."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import all_units, tiny_run

import nni_bertnas
from nni_bertnas.config import to_yaml
from nni_bertnas.stages.run import Run

pytestmark = pytest.mark.integration


def make(root: Path, depth: int) -> Run:
    """A study whose features are made, and whose cells have a depth of its own."""
    options = {"samples": 1}
    run = tiny_run(root, cell={"strategy": "random", "depths": [depth], "epochs": 1, "options": options})
    (root / "study.yml").write_text(to_yaml(run.study))
    all_units(run, "teacher", "features")
    return run


def start(root: Path, **environment: str) -> subprocess.Popen:
    command = [str(Path(sys.executable).with_name("bertnas")), "cell", "study.yml"]
    return subprocess.Popen(
        command,
        cwd=root,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.long
def test_two_studies_at_the_same_moment_behind_a_proxy_keep_apart(tmp_path: Path) -> None:
    runs = {depth: make(tmp_path / f"depth {depth}", depth) for depth in (1, 2)}
    dead = {"http_proxy": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9", "NODE_OPTIONS": "--no-warnings"}
    homes = {1: {}, 2: {"HOME": "/proc/nobody"}}  # and where the home cannot be written
    processes = {depth: start(tmp_path / f"depth {depth}", **dead, **homes[depth]) for depth in runs}
    addresses = set()
    for depth, process in processes.items():
        text, _ = process.communicate(timeout=300)
        assert process.returncode == 0, text
        assert sorted(runs[depth].results("cell")) == [f"block0_depth{depth}", f"block1_depth{depth}"]
        assert f"cell block0_depth{depth}: score" in text and f"_depth{3 - depth}" not in text
        addresses.add(text.split("web UI at ")[1].split()[0])
    assert len(addresses) == 2


@pytest.mark.long
def test_nni_that_starts_slowly_in_a_folder_with_a_space_is_waited_for(tmp_path: Path) -> None:
    run = make(tmp_path / "study", 1)
    home = Path(nni_bertnas.__file__).parents[1]
    for name in ("nni_bertnas", "search_space", "trials"):
        shutil.copytree(home / name, tmp_path / "it's my work" / name)
    with (tmp_path / "it's my work" / "nni_bertnas" / "launch" / "loopback.js").open("a") as file:
        file.write("\nAtomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 9000);\n")  # as on a busy machine
    process = start(tmp_path / "study", PYTHONPATH=str(tmp_path / "it's my work"))
    text, _ = process.communicate(timeout=300)
    assert process.returncode == 0, text
    assert len(run.results("cell")) == 2
