"""The `bertnas` command. One row of COMMANDS each; a command's module is loaded when it runs, so that help is quick."""

import argparse
import importlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nni_bertnas import __version__, quiet_libraries
from nni_bertnas.cli.completion import SHELLS, complete
from nni_bertnas.deploy import FORMATS
from nni_bertnas.errors import BertnasError
from nni_bertnas.stages import STAGES
from nni_bertnas.student import COSTS
from nni_bertnas.tracking.logs import Terminal

Arguments = Mapping[str, Mapping[str, Any]]  # name -> what argparse wants to know of it


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        module: Of this folder, with a function `run` that takes the parsed arguments.
        help: What it does.
        example: A command line, which ends its help.
        arguments: That it takes.
    """

    module: str
    help: str
    example: str
    arguments: Arguments = field(default_factory=dict)


_STUDY: Arguments = {"study": {"type": Path, "metavar": "STUDY", "help": "the study's YAML file"}}
_MODEL: Arguments = {
    "model": {"type": Path, "metavar": "MODEL", "help": "its folder, e.g. runs/demo/supernet/seed0/student"}
}
_LOUD: Arguments = {
    "--quiet": {"action": "store_true", "help": "say only what came out at the end, and errors"},
    "--verbose": {"action": "store_true", "help": "say every metric, and what libraries tell, too"},
}
_WHERE: Arguments = {
    "--on": {
        "type": Path,
        "metavar": "MACHINES",
        "help": "run on the machines of this YAML file, through NNI's remote",
    },
    "--public": {
        "action": "store_true",
        "help": "let other machines look at NNI's web UI, with a token (default: this one alone)",
    },
}
_LEVELS = {"quiet": "ERROR", "verbose": "INFO"}  # of libraries' messages
_UNIT: Arguments = {
    "--unit": {
        "type": int, "metavar": "N", "help": "this one alone, from 0, in this process and without NNI (jobs of Slurm)"
    }
}  # fmt: skip
_FORCE = {"choices": STAGES, "metavar": "STAGE", "help": f"redo it and what builds on it: {', '.join(STAGES)}"}
COMMANDS: dict[str, Command] = {
    "new": Command(
        "new",
        "a study for your own data, with comments; asks for what no flag says, or guesses it",
        "bertnas new tickets.yml --data tickets.csv --text subject body --label queue --speedup 10",
        {
            "file": {"type": Path, "nargs": "?", "metavar": "FILE", "help": "takes it (default: as the data, .yml)"},
            "--data": {"metavar": "ROWS", "help": "training rows, .csv, .tsv, .jsonl or .parquet"},
            "--dev": {"metavar": "ROWS", "help": "that choose the best epoch (default: a tenth of train)"},
            "--test": {"metavar": "ROWS", "help": "read at the end (default: a tenth of train)"},
            "--text": {"nargs": "+", "metavar": "COLUMN", "help": "one, or two of a pair (default: the longest)"},
            "--label": {"nargs": "+", "metavar": "COLUMN", "help": "one, or one of 0 and 1 for every label"},
            "--kind": {
                "choices": ("classification", "regression", "multi_label"), "help": "(default: by the values)"
            },
            "--speedup": {"type": float, "metavar": "X", "help": "over the teacher (default: 10)"},
            "--teacher": {"metavar": "MODEL", "help": "a folder, a hub name or package:NAME (default: the demo's)"},
            "--name": {"help": "of the study (default: as FILE)"},
            "--force": {"action": "store_true", "help": "write over FILE"},
        },
    ),
    "plan": Command(
        "plan",
        "what a study will make, how long it takes on this machine, and how much disk; measures for half a minute",
        "bertnas plan tickets.yml",
        _STUDY,
    ),
    "run": Command(
        "run",
        "all of a study, stage by stage",
        "bertnas run tickets.yml --smoke",
        {
            **_STUDY,
            "--force": _FORCE,
            "--smoke": {
                "action": "store_true", "help": "all stages on a few hundred rows, in two minutes; scores mean nothing"
            },
            **_WHERE,
            **_LOUD,
        },
    ),
    "slurm": Command(
        "slurm",
        "a study as jobs of Slurm: writes their scripts, hands them over, prints what they are",
        "bertnas slurm tickets.yml --profile cluster.yml --submit",
        {
            **_STUDY,
            "--profile": {
                "type": Path, "required": True, "metavar": "FILE",
                "help": "of the cluster, as experiment_configs/slurm/cluster.yml",
            },
            "--submit": {"action": "store_true", "help": "hand the jobs to Slurm"},
        },
    ),
    "validate": Command(
        "validate",
        "check a study file, and NNI's experiment files",
        "bertnas validate tickets.yml experiment_configs/cell.yml",
        {
            **_STUDY,
            "nni_yaml": {"type": Path, "nargs": "*", "metavar": "NNI_YAML", "help": "NNI experiment files"},
        },
    ),
    "doctor": Command(
        "doctor", "whether studies can run on this machine, and what to do where they cannot", "bertnas doctor"
    ),
    "data": Command(
        "data", "rows, labels, lengths and examples of a study's data", "bertnas data tickets.yml", _STUDY
    ),
    "space": Command(
        "space",
        "the search space of a study: a table, NNI's search space, a picture",
        "bertnas space tickets.yml --depth 2 --draw space.png",
        {
            **_STUDY,
            "--depth": {"type": int, "help": "of the cells (default: the study's largest)"},
            "--nni": {"type": Path, "metavar": "FILE", "help": "write NNI's search space, .json or .yml"},
            "--draw": {"type": Path, "metavar": "FILE", "help": "draw the space, .png or .svg (extra plots)"},
        },
    ),
    **{
        name: Command("stage", entry.help, f"bertnas {name} tickets.yml", {**_STUDY, **_UNIT, **_WHERE, **_LOUD})
        for name, entry in STAGES.items()
    },
    "select": Command(
        "select",
        "the best students that a finished search can give within a budget, by predicted score; trains nothing",
        "bertnas select tickets.yml --min-speedup 20 --top 3",
        {
            **_STUDY,
            "--max-params": {"type": int, "metavar": "N", "help": "parameters, embeddings included"},
            "--max-size-mb": {"type": float, "metavar": "MB", "help": "of the file of weights"},
            "--max-flops": {"type": int, "metavar": "N", "help": "of one pass at batch 1"},
            "--max-latency-ms": {"type": float, "metavar": "MS", "help": "at batch 1"},
            "--min-speedup": {"type": float, "metavar": "X", "help": "over the teacher"},
            "--top": {"type": int, "default": 5, "metavar": "N", "help": "how many (default: 5)"},
            "--differ": {"type": int, "default": 1, "metavar": "K", "help": "in how many blocks at least (default: 1)"},
        },
    ),
    "front": Command(
        "select",
        "the students of a finished search that none other beats in both predicted score and a cost",
        "bertnas front tickets.yml --cost num_params --draw front.png",
        {
            **_STUDY,
            "--cost": {"choices": COSTS, "default": "latency_ms", "help": "(default: latency_ms)"},
            "--draw": {"type": Path, "metavar": "FILE", "help": "draw it, .png or .svg (extra plots)"},
        },
    ),
    "profile": Command(
        "profile",
        "measure what students of a study are made of on this machine, for all studies beside it; trains nothing",
        "bertnas profile tickets.yml --batch 1 32",
        {
            **_STUDY,
            "--batch": {"type": int, "nargs": "+", "default": [1], "metavar": "N", "help": "rows a pass (default: 1)"},
        },
    ),
    "report": Command(
        "report",
        "teacher against student, once more, and all that a study came to as one HTML page",
        "bertnas report tickets.yml",
        {
            **_STUDY,
            "--html": {"type": Path, "metavar": "FILE", "help": "of the page (default: report.html in the run)"},
        },
    ),
    "status": Command(
        "status",
        "how far a run is, while it goes on or afterwards: units, losses, times, disk",
        "bertnas status tickets.yml",
        {**_STUDY, "--json": {"action": "store_true", "help": "as JSON"}},
    ),
    "predict": Command(
        "predict",
        "predictions of a saved teacher or student for a file of rows",
        "bertnas predict runs/tickets/supernet/seed0/student new.csv --output new.predicted.csv",
        {
            **_MODEL,
            "file": {"type": Path, "metavar": "FILE", "help": ".csv, .tsv, .jsonl or .parquet; for GLUE its folder"},
            "--output": {"type": Path, "metavar": "FILE", "help": "same endings (default: FILE.predictions.csv)"},
            "--columns": {"nargs": "+", "metavar": "NAME", "help": "of one or two texts (default: as in training)"},
            "--quotes": {
                "choices": ("csv", "literal"), "help": "literal: a quote in .csv and .tsv is part of the text"
            },
            "--glue-submission": {
                "type": Path, "metavar": "ZIP", "help": "predict GLUE's test rows into the server's zip"
            },
        },
    ),
    "export": Command(
        "export",
        "a saved teacher or student, or a study's best student, in another format",
        "bertnas export runs/tickets/supernet/seed0/student --to hf --output tickets-student",
        {
            "model": {"type": Path, "metavar": "STUDY|MODEL", "help": "a study's YAML file, or a model's folder"},
            "--to": {
                "choices": FORMATS,
                "required": True,
                "help": "; ".join(f"{name}: {one.help}" for name, one in FORMATS.items()),
            },
            "--output": {"type": Path, "metavar": "FOLDER", "required": True, "help": "takes it; must be new"},
            "--rows": {
                "type": Path, "metavar": "FILE", "help": "rows to compare it on (default: dev of the model's study)"
            },
            "--min-agreement": {
                "type": float, "metavar": "SHARE", "help": "of rows answered alike (default: export.min_agreement)"
            },
        },
    ),
    "push": Command(
        "push",
        "upload an exported model to the Hugging Face hub",
        "bertnas push tickets-student me/tickets",
        {
            "folder": {"type": Path, "metavar": "FOLDER", "help": "what `bertnas export` wrote of a study's student"},
            "repository": {"metavar": "OWNER/NAME", "help": "on the hub; made where it is not there"},
            "--public": {"action": "store_true", "help": "a new one can be read by all (default: private)"},
        },
    ),
    "bench": Command(
        "bench",
        "saved and exported models beside each other: latency, throughput, memory, size, time to the first answer",
        "bertnas bench tickets.yml tickets-onnx",
        {
            "models": {"type": Path, "nargs": "+", "metavar": "MODEL", "help": "a folder, or a study file"},
            "--rows": {"type": Path, "metavar": "FILE", "help": "of the task (default: dev of a model's study)"},
            "--threads": {"type": int, "default": 1, "metavar": "N", "help": "of every pass (default: 1)"},
            "--json": {"type": Path, "metavar": "FILE", "help": "write all figures"},
            "--draw": {"type": Path, "metavar": "FILE", "help": "draw them, .png or .svg (extra plots)"},
        },
    ),
    "serve": Command(
        "serve",
        "an exported model as a web service: POST /predict, GET /health, GET /metrics",
        "bertnas serve tickets-onnx --port 8000",
        {
            "folder": {"type": Path, "metavar": "FOLDER", "help": "what `bertnas export --to onnx` wrote"},
            "--host": {"default": "127.0.0.1", "help": "(default: 127.0.0.1, this machine alone)"},
            "--port": {"type": int, "default": 8000, "metavar": "N", "help": "(default: 8000)"},
            "--threads": {"type": int, "default": 1, "metavar": "N", "help": "of every pass (default: 1)"},
            "--max-batch": {"type": int, "default": 32, "metavar": "N", "help": "rows of a pass (default: 32)"},
            "--max-texts": {"type": int, "default": 64, "metavar": "N", "help": "of a request (default: 64)"},
            "--max-characters": {"type": int, "default": 10_000, "metavar": "N", "help": "of a text (default: 10000)"},
        },
    ),
    "loopback": Command(
        "loopback",
        "what keeps NNI's ports on this machine when nnictl starts it, which opens them to all",
        'eval "$(bertnas loopback)" && nnictl create --config experiment_configs/cell.yml',
        {
            "--python": {"metavar": "FOLDER", "help": "of an environment's python on a remote machine; with --into"},
            "--into": {
                "type": Path, "metavar": "FOLDER", "help": "takes a python for NNI's pythonPath, ports closed"
            },
        },
    ),
    "completion": Command(
        "completion",
        "what completes commands and options when Tab is pressed (extra completion)",
        'eval "$(bertnas completion bash)"',
        {"shell": {"choices": SHELLS, "help": "eval its output, or put that line into .bashrc or .zshrc"}},
    ),
}  # fmt: skip


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="bertnas", description="Compress a fine-tuned BERT by block-wise architecture search."
    )
    top.add_argument("--version", action="version", version=__version__)
    subparsers = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        sub = subparsers.add_parser(
            name, help=command.help, description=command.help, epilog=f"example: {command.example}"
        )
        for argument, options in command.arguments.items():
            sub.add_argument(argument, **options)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    top = parser()
    complete(top)
    parsed = top.parse_args(arguments)
    _end_as_interrupted()
    quiet_libraries()
    asked = next((name for name in _LEVELS if getattr(parsed, name, False)), "")
    level = _LEVELS.get(asked, "WARNING")
    logging.basicConfig(
        level=os.environ.get("BERTNAS_LOG", level), format="%(levelname)s %(name)s: %(message)s", handlers=[Terminal()]
    )
    try:
        importlib.import_module(f"{__name__}.{COMMANDS[parsed.command].module}").run(parsed)
    except BertnasError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt as error:
        print("interrupted; the same command goes on from the last finished result", file=sys.stderr)
        return 128 + (error.args[0] if error.args else signal.SIGINT)
    return 0


def _end_as_interrupted() -> None:
    """Let the signals of `timeout`, Slurm, docker and a closed terminal end this process as Ctrl-C does: cleanly."""

    def interrupt(number: int, frame: object) -> None:
        signal.signal(number, signal.SIG_IGN)  # once is enough
        raise KeyboardInterrupt(number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        if threading.current_thread() is threading.main_thread() and signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, interrupt)
