"""NNI's ports kept on their machine: `loopback.js`, and how node is told of it, here and by NNI's remote service."""

import json
import os
import shlex
import shutil
from pathlib import Path

_SCRIPT = Path(__file__).with_name("loopback.js")
MACHINE = "BERTNAS_MACHINE"
_PASSED = ("HF_HUB_OFFLINE", "WANDB_MODE")  # of this environment to that of trials; never a key
_PYTHON = """\
#!/bin/sh
# Written by bertnas, in place of {python}: what NNI's remote service calls.
case "$*" in "-m pip install nni --upgrade") echo "bertnas keeps this environment as it is"; exit 0 ;; esac
export NODE_OPTIONS="${{NODE_OPTIONS:+$NODE_OPTIONS }}"{option}
{exports}exec {python} "$@"
"""


def node_option(script: Path = _SCRIPT) -> str:
    """What `NODE_OPTIONS` has to hold."""
    return f"--require {json.dumps(str(script))}"  # node reads quotes and backslashes as JSON does


def write_python(folder: Path, python: str, machine: int = 0) -> None:
    """Write a `python` for NNI's remote service into a folder, which goes into NNI's `pythonPath`.

    NNI upgrades itself in the environment that it is given, and opens a port on every interface there. This `python`
    refuses the one and closes the other; in everything else it is the environment's own.

    Args:
        folder: Takes it, and a copy of `loopback.js`; absolute, as it stands over there.
        python: The folder of the environment's own `python`.
        machine: What trials there find in the variable MACHINE.
    """
    folder.mkdir(parents=True, exist_ok=True)
    script = Path(shutil.copy(_SCRIPT, folder))
    exports = f"export {MACHINE}={machine}\n"
    exports += "".join(f"export {name}={shlex.quote(os.environ[name])}\n" for name in _PASSED if name in os.environ)
    own, option = shlex.quote(f"{python}/python"), shlex.quote(node_option(script))
    path = folder / "python"
    path.write_text(_PYTHON.format(python=own, option=option, exports=exports), encoding="utf-8")
    path.chmod(0o755)
