"""`bertnas loopback`: NNI's ports kept on this machine, whoever starts it."""

import json
import shlex
import shutil
from argparse import Namespace
from pathlib import Path

from nni_bertnas.errors import ConfigError
from nni_bertnas.launch.manager import LOOPBACK
from nni_bertnas.launch.remote import write_python


def run(arguments: Namespace) -> None:
    """Print a line for the shell; with `--into`, write what NNI's remote service is to call."""
    if (arguments.python is None) != (arguments.into is None):
        raise ConfigError("loopback: --python and --into go together; give both or none")
    if arguments.into is None:
        option = f"--require {json.dumps(str(LOOPBACK))}"  # node reads quotes and backslashes as JSON does
        print(f"export NODE_OPTIONS={shlex.quote(option)}")
        return
    arguments.into.mkdir(parents=True, exist_ok=True)
    script = Path(shutil.copy(LOOPBACK, arguments.into.resolve()))
    print(f"pythonPath: {write_python(arguments.into.resolve(), arguments.python, script).parent}")
