"""`bertnas loopback`: NNI's ports kept on their machine, whoever starts it."""

import shlex
from argparse import Namespace

from nni_bertnas.errors import ConfigError
from nni_bertnas.launch.loopback import node_option, write_python


def run(arguments: Namespace) -> None:
    """Print a line for the shell; with `--into`, write what NNI's remote service is to call."""
    if (arguments.python is None) != (arguments.into is None):
        raise ConfigError("loopback: --python and --into go together; give both or none")
    if arguments.into is None:
        print(f"export NODE_OPTIONS={shlex.quote(node_option())}")
        return
    folder = arguments.into.absolute()
    write_python(folder, arguments.python)
    print(f"pythonPath: {folder}")
