"""What the commands print with."""

import sys

from rich.console import Console


def open_console() -> Console:
    """The terminal, or a file of lines of 120 characters; brackets in people's words are no markup."""
    return Console(width=None if sys.stdout.isatty() else 120, markup=False)
