"""`bertnas doctor`: whether studies can run on this machine."""

from argparse import Namespace
from pathlib import Path

from nni_bertnas.cli.show import open_console
from nni_bertnas.errors import PhaseError
from nni_bertnas.launch.doctor import CHECKS

_MARKS = {"ok": "ok  ", "note": "note", "bad": "BAD "}


def run(arguments: Namespace) -> None:
    """Print what every check finds; the exit code is 1 where studies would fail."""
    console, bad = open_console(), []
    for name, check in CHECKS.items():
        found = check(Path.cwd())
        console.print(f"{_MARKS[found.state]} {name}: {found.text}", highlight=False, soft_wrap=True)
        if found.remedy:
            console.print(f"     {found.remedy}", highlight=False, soft_wrap=True)
        bad += [name] if found.state == "bad" else []
    if bad:
        raise PhaseError(f"studies will not run on this machine as it is: {', '.join(bad)}")
