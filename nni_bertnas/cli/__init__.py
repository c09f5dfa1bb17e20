"""The `bertnas` command: one dict, command -> function."""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nni_bertnas import __version__, quiet_libraries
from nni_bertnas.artifacts import STAGES
from nni_bertnas.cli import commands
from nni_bertnas.errors import BertnasError

COMMANDS: dict[str, tuple[Callable[[argparse.Namespace], None], str]] = {
    "run": (commands.run, "all of a study: teacher, features, and the three phases through NNI"),
    "validate": (commands.validate, "check a study file, and NNI's experiment files"),
    "data": (commands.data, "rows, labels, lengths and examples of a study's data"),
    "teacher": (commands.teacher, "make the teacher, fine-tuned where it needs it"),
    "features": (commands.features, "run the teacher once over the data and store what it gives"),
    "space": (commands.space, "the search space of a study: a table, NNI's search space, a picture"),
    "augment": (commands.augment, "new training rows, after TinyBERT, for the student (study section augment)"),
    "cell": (commands.phase, "the cell phase through NNI"),
    "block": (commands.phase, "the block phase through NNI"),
    "supernet": (commands.phase, "the supernet phase through NNI"),
    "report": (commands.report, "teacher against student, once more"),
    "predict": (commands.predict, "predictions of a saved teacher or student for a file of rows"),
}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="bertnas", description="Compress a fine-tuned BERT by block-wise architecture search."
    )
    top.add_argument("--version", action="version", version=__version__)
    subparsers = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (_, text) in COMMANDS.items():
        sub = subparsers.add_parser(name, help=text, description=text)
        if name == "predict":
            _add_predict(sub)
            continue
        sub.add_argument("study", type=Path, metavar="STUDY", help="the study's YAML file")
        if name == "validate":
            sub.add_argument("nni_yaml", type=Path, nargs="*", metavar="NNI_YAML", help="NNI experiment files")
        if name == "space":
            sub.add_argument("--depth", type=int, help="of the cells (default: the study's largest)")
            sub.add_argument("--nni", type=Path, metavar="FILE", help="write NNI's search space, .json or .yml")
            sub.add_argument("--draw", type=Path, metavar="FILE", help="draw the space, .png or .svg (extra plots)")
        if name == "augment":
            sub.add_argument("--fit-mlm", action="store_true", help="first fit a masked language model to the text")
        if name == "run":
            sub.add_argument("--force", choices=STAGES, metavar="PHASE", help=f"redo from here on: {', '.join(STAGES)}")
    return top


def _add_predict(sub: argparse.ArgumentParser) -> None:
    options: dict[str, dict[str, Any]] = {
        "model": {"type": Path, "metavar": "MODEL", "help": "its folder, e.g. runs/demo/supernet/seed0/student"},
        "file": {"type": Path, "metavar": "FILE", "help": ".csv, .tsv, .jsonl or .parquet; for GLUE its folder"},
        "--output": {"type": Path, "metavar": "FILE", "help": "same endings (default: FILE.predictions.csv)"},
        "--columns": {"nargs": "+", "metavar": "NAME", "help": "of one or two texts (default: as in training)"},
        "--quotes": {"choices": ("csv", "literal"), "help": "literal: a quote in .csv and .tsv is part of the text"},
        "--glue-submission": {"type": Path, "metavar": "ZIP", "help": "predict GLUE's test rows into the server's zip"},
    }
    for name, option in options.items():
        sub.add_argument(name, **option)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    parsed = parser().parse_args(arguments)
    quiet_libraries()
    logging.basicConfig(level=os.environ.get("BERTNAS_LOG", "WARNING"), format="%(levelname)s %(name)s: %(message)s")
    try:
        COMMANDS[parsed.command][0](parsed)
    except BertnasError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last finished result", file=sys.stderr)
        return 130
    return 0
