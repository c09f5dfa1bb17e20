"""TensorBoard as NNI's web portal starts it."""

import os
import subprocess
from pathlib import Path

import nni_node

LOOPBACK = Path(__file__).parents[2] / "nni_bertnas" / "launch" / "loopback.js"


def test_the_portals_tensorboard_stays_on_this_machine_and_takes_any_folder(tmp_path: Path) -> None:
    command = tmp_path / "tensorboard"
    command.write_text('#!/bin/sh\nprintf "%s|" "$@"\n')
    command.chmod(0o755)
    script = (
        "require('child_process').spawn('tensorboard', "
        '["--bind_all --logdir_spec=0-a:/x y/it\'s,1-b:/z", "--port=6006"], {shell: true, stdio: "inherit"})'
    )
    node = next(path for name in ("node", "node.exe") if (path := Path(nni_node.__path__[0]) / name).exists())
    done = subprocess.run(
        [str(node), "--require", str(LOOPBACK), "-e", script], capture_output=True, text=True, check=True,
        env={**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"},
    )  # fmt: skip
    assert done.stdout == "--host=127.0.0.1|--logdir_spec=0-a:/x y/it's,1-b:/z|--port=6006|"
