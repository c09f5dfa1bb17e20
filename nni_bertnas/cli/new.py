"""`bertnas new`: a study for your own data, with comments."""

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.prompt import Prompt

from nni_bertnas.artifacts import write_whole
from nni_bertnas.cli.show import open_console
from nni_bertnas.config import TeacherSettings
from nni_bertnas.data.columns import Guess, Table, guess, look
from nni_bertnas.errors import ConfigError
from nni_bertnas.report.new import show_columns, show_draft
from nni_bertnas.stages.draft import Wishes, draft, study_name


def run(arguments: Namespace) -> None:
    """Look at the data, ask or guess, and write the study.

    Raises:
        ConfigError: A flag is wrong, or the file is there.
    """
    console, asks = open_console(), sys.stdin.isatty()
    data = arguments.data or (_ask(console, "file of training rows", None) if asks else None)
    if data is None:
        raise ConfigError("--data: name the file of training rows, .csv, .tsv, .jsonl or .parquet")
    target = arguments.file or Path(f"{study_name(Path(data).stem)}.yml")
    if target.exists() and not arguments.force:
        raise ConfigError(f"{target} is there already; give another name, or --force to write over it")
    table = _look(data, "--data")
    show_columns(table, console)
    for flag in ("dev", "test"):
        if getattr(arguments, flag) is not None:
            _look(getattr(arguments, flag), f"--{flag}")
    found = guess(table, arguments.text or (), arguments.label or (), arguments.kind)
    speedup, teacher = arguments.speedup, arguments.teacher
    if asks:
        found = _confirm(console, table, found, arguments)
        speedup = speedup or _number(_ask(console, "times as fast as the teacher", "10"), "--speedup")
        teacher = teacher or _ask(console, "teacher", TeacherSettings().model)
    speedup = 10.0 if speedup is None else speedup
    if speedup <= 0:
        raise ConfigError(f"--speedup must be above 0, got {speedup:g}")
    name = arguments.name or study_name(target.stem)
    if name != study_name(name):
        raise ConfigError(f"--name: is a folder's name of letters, digits, - _ and ., e.g. {study_name(name)}")
    wishes = Wishes(
        name=name,
        train=str(data),
        dev=arguments.dev,
        test=arguments.test,
        teacher=teacher or TeacherSettings().model,
        speedup=speedup,
        guess=found,
    )
    made = draft(wishes, table)
    show_draft(made, found, table, console)
    try:
        write_whole(target, made.text)
    except OSError as error:
        raise ConfigError(f"{target}: cannot be written ({error.strerror}); give another path") from error
    console.print(
        f"{target} is written; read it, then: bertnas plan {target}, and bertnas run {target} --smoke",
        highlight=False,
        soft_wrap=True,
    )


def _look(path: str, flag: str) -> Table:
    try:
        return look(Path(path))
    except ConfigError as error:
        raise ConfigError(f"{flag}: {error}") from error


def _ask(console: Console, question: str, default: str | None) -> str:
    """Ask until something is said."""
    while not (answer := Prompt.ask(question, console=console, default=default)):
        pass
    return answer


def _confirm(console: Console, table: Table, found: Guess, arguments: Namespace) -> Guess:
    """The guess as the user wants it."""
    for text in found.reasons:
        console.print(text, highlight=False)
    texts = arguments.text or _names(_ask(console, "column(s) of the text, two for pairs", ", ".join(found.texts)))
    labels = arguments.label or _names(_ask(console, "column(s) of the label", ", ".join(found.labels)))
    return guess(table, texts, labels, arguments.kind)


def _names(answer: str) -> Sequence[str]:
    return [name.strip() for name in answer.split(",") if name.strip()]


def _number(text: str, flag: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"{flag}: must be a number, got {text!r}") from None
