"""What the commands print with."""

import sys
from argparse import Namespace

from rich.console import Console

from nni_bertnas.report.progress import Teller


def open_console() -> Console:
    """The terminal, or a file of lines of 120 characters; brackets in people's words are no markup."""
    return Console(width=None if sys.stdout.isatty() else 120, markup=False)


def open_teller(arguments: Namespace) -> Teller:
    """The same for commands that take long, as loud as they were asked to be."""
    return Teller(open_console(), "quiet" if arguments.quiet else "verbose" if arguments.verbose else "normal")
