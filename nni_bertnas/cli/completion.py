"""`bertnas completion`: commands, options and files at the press of Tab."""

import argparse
import importlib.util
import os

from nni_bertnas.errors import ConfigError

SHELLS = ("bash", "zsh")


def run(arguments: argparse.Namespace) -> None:
    """Print what the shell has to know."""
    if importlib.util.find_spec("argcomplete") is None:
        raise ConfigError("completion: argcomplete is not installed; pip install 'nni-bertnas[completion]'")
    import argcomplete

    print(argcomplete.shellcode(["bertnas"], shell=arguments.shell))


def complete(parser: argparse.ArgumentParser) -> None:
    """Answer the shell and end, where it is the shell that asks; argcomplete sets the variable."""
    if "_ARGCOMPLETE" in os.environ and importlib.util.find_spec("argcomplete") is not None:
        import argcomplete

        argcomplete.autocomplete(parser)
