"""A study for somebody's own data, as YAML that says in comments what each line is and what else it could be."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import yaml

from nni_bertnas.config import Study
from nni_bertnas.data.columns import Guess, Table
from nni_bertnas.data.models import load_config, load_tokenizer
from nni_bertnas.data.rows import Rows
from nni_bertnas.data.task_data import TaskData, load_task
from nni_bertnas.data.tokens import piece_lengths
from nni_bertnas.errors import ConfigError
from nni_bertnas.study_files import parse_study

_PIECES_PER_WORD = 1.5  # where the teacher's tokenizer is not at hand
_SHARE = 99  # percent of the rows that are not cut
_STEP, _LEAST, _MOST = 16, 32, 512  # word pieces
_FREQUENT, _RARE = 0.8, 0.05  # shares of rows
_METRICS = {
    "classification": "accuracy, f1_macro, matthews; of two labels also f1, accuracy_f1",
    "regression": "pearson_spearman, pearson, spearman",
    "multi_label": "micro_f1, macro_f1, exact_match",
}


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What is asked for.

    Attributes:
        name: Of the study.
        train: File of rows.
        dev: Likewise; None: held out of train.
        test: Likewise.
        teacher: As `teacher.model` has it.
        speedup: Over the teacher.
        guess: Which columns are what.
    """

    name: str
    train: str
    dev: str | None
    test: str | None
    teacher: str
    speedup: float
    guess: Guess


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A study and what it was made from.

    Attributes:
        text: The file.
        study: The same, parsed.
        data: The rows.
        lengths: Of train's rows in word pieces, `(num_rows,)`.
        notes: What was found and decided on; a sentence each.
    """

    text: str
    study: Study
    data: TaskData
    lengths: np.ndarray
    notes: tuple[str, ...]


def study_name(text: str) -> str:
    """A text as the name of a study."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text).strip("-_.") or "study"


def draft(wishes: Wishes, table: Table, more: Mapping[str, Any] | None = None) -> Draft:
    """Write a study.

    Args:
        wishes: What is asked for.
        table: The file of training rows.
        more: Fields of the study that the file does not have, but by which the data are read.

    Raises:
        ConfigError: The data cannot be learnt from, with the reason.
    """
    raw = _fields(wishes, table)
    data = load_task(parse_study(merged(raw, more or {}), "the new study").task)
    notes: list[str] = []
    task, own = raw["task"], raw["task"]["custom"]
    lengths, known = _lengths(wishes.teacher, data.splits["train"], notes)
    longest = min(_MOST, known)
    wanted = int(np.percentile(lengths, _SHARE))
    task["max_length"] = max(min(_LEAST, longest), min(longest, -(-wanted // _STEP) * _STEP))
    shares = _shares(data) if wishes.guess.kind == "classification" else {}
    if shares and max(shares.values()) >= _FREQUENT:
        own["metric"] = "f1_macro"
        notes.append(f"metric: f1_macro, as {max(shares.values()):.0%} of train have one label, which accuracy rewards")
    if shares and min(shares.values()) <= _RARE:
        rare = min(shares, key=lambda name: shares[name])
        notes.append(f"{rare} has {shares[rare]:.1%} of train: task.balance: weights or logits would teach more of it")
    text = _text(parse_study(raw, "the new study"), wishes, table, lengths)
    study = parse_study(yaml.safe_load(text), "the new study")
    return Draft(text=text, study=study, data=data, lengths=lengths, notes=tuple(notes))


def merged(fields: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """A study's fields with others over them, section by section."""
    found = dict(fields)
    for name, value in more.items():
        before = found.get(name)
        both = isinstance(value, Mapping) and isinstance(before, Mapping)
        found[name] = merged(before, value) if both else value  # type: ignore[arg-type]
    return found


def _fields(wishes: Wishes, table: Table) -> dict[str, Any]:
    guess = wishes.guess
    custom: dict[str, Any] = {
        "train": wishes.train, "dev": wishes.dev, "test": wishes.test, "text_columns": list(guess.texts),
        "kind": guess.kind,
    }  # fmt: skip
    if len(guess.labels) > 1:
        custom["label_columns"] = list(guess.labels)
    else:
        custom["label_column"] = guess.labels[0]
    if guess.separator is not None:
        custom["label_separator"] = guess.separator
    task: dict[str, Any] = {"name": "custom", "source": "files", "custom": custom}
    if incomplete(table, guess):
        task["bad_rows"] = "skip"
    return {
        "name": wishes.name,
        "task": task,
        "teacher": {"model": wishes.teacher},
        "supernet": {"budget": {"min_speedup": float(wishes.speedup)}},
    }


def incomplete(table: Table, guess: Guess) -> int:
    """How many rows cannot be learnt from: damaged, without a text, or without a label where one is needed."""
    needed = [*guess.texts, *(guess.labels if guess.kind != "multi_label" else ())]
    return len(table.damaged) + max(table.rows - table.columns[name].filled for name in needed)


def _lengths(teacher: str, train: Rows, notes: list[str]) -> tuple[np.ndarray, int]:
    """Word pieces of every row, and how many the teacher takes."""
    try:
        tokenizer, config = load_tokenizer(teacher), load_config(teacher)
    except ConfigError as error:
        notes.append(f"lengths are guessed from words, {_PIECES_PER_WORD} word pieces each, as {error}")
        sides: Sequence[Sequence[str]] = [train.texts, *([] if train.pairs is None else [train.pairs])]
        words = [sum(len(text.split()) for text in row) for row in zip(*sides, strict=True)]
        return np.ceil(np.asarray(words) * _PIECES_PER_WORD).astype(int) + 1 + len(sides), _MOST
    return piece_lengths(tokenizer, train), int(getattr(config, "max_position_embeddings", 0) or _MOST)


def _shares(data: TaskData) -> dict[str, float]:
    labels = np.asarray(data.splits["train"].labels, int)
    counts = np.bincount(labels, minlength=len(data.label_names)) / len(labels)
    return dict(zip(data.label_names, counts.tolist(), strict=True))


def _spell(value: Any) -> str:
    """A value as YAML on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=float("inf"))
    return text.removesuffix("\n").removesuffix("\n...")


def _text(study: Study, wishes: Wishes, table: Table, lengths: np.ndarray) -> str:
    lines = [
        '# Written by `bertnas new`. What is not here has its default: every key stands in the docs, "Studies".',
        ("name", study.name, f"everything goes to {study.runs_dir}/{study.name}"),
        ("seed", study.seed, "of all that is drawn at random"),
        *_task_lines(study, wishes, table, lengths),
        "teacher:",
        ("  model", study.teacher.model, "a folder, a hub name or package:NAME"),
        ("  epochs", study.teacher.epochs, "of its fine-tuning"),
        ("  num_blocks", study.teacher.blocks, "consecutive layers that a cell each stands in for"),
        "transfer:",
        ("  files", [], "texts without labels, .txt with a text a line: the more, the better the student"),
        "student:",
        ("  hidden_size", study.student.hidden_size, "width; 128 is smaller and faster, 256 better"),
        "cell:",
        ("  depths", study.cell.depths, "layers of a cell that are tried"),
        "supernet:",
        ("  epochs", study.supernet.epochs, "of the student's training; more help where rows are few"),
        "  budget: # what the student may cost; null: no limit",
        ("    min_speedup", study.supernet.budget.min_speedup, "times as fast as the teacher, at batch 1"),
        ("    max_size_mb", None, "of the file of weights"),
        ("    max_latency_ms", None, "of one text"),
    ]  # fmt: skip
    return "".join(f"{line if isinstance(line, str) else _line(*line)}\n" for line in lines)


def _task_lines(
    study: Study, wishes: Wishes, table: Table, lengths: np.ndarray
) -> Iterator[str | tuple[str, Any, str]]:
    task, own, held = study.task, study.task.custom, "null: a tenth of train is held out"
    assert own is not None
    cut, left = int((lengths > task.max_length).sum()), incomplete(table, wishes.guess)
    yield "task:"
    yield "  name", task.name, "your own data; or a task by name, such as sst2"
    yield "  source", task.source, "rows in files; or disk: a folder written by datasets"
    yield "  custom:"
    yield "    train", own.train, f"{table.rows:,} rows; .csv, .tsv, .jsonl or .parquet"
    yield "    dev", own.dev, f"chooses the best epoch; {held}"
    yield "    test", own.test, f"read once, at the end; {held}"
    yield "    text_columns", own.text_columns, "one, or two for pairs"
    if own.label_columns:
        yield "    label_columns", own.label_columns, "of 0 and 1, one for every label"
    else:
        yield "    label_column", own.label_column, _values(table, own.label_column)
    yield "    kind", own.kind, "classification, regression (scores) or multi_label (any number of labels a row)"
    if wishes.guess.separator:
        yield "    label_separator", own.label_separator, "between the labels of a row"
    yield "    metric", own.metric or _METRICS[own.kind].split(",")[0], f"what ranks: {_METRICS[own.kind]}"
    if len(own.text_columns) == 2:
        yield "    symmetric", own.symmetric, "true where the order of the two texts does not matter, as in similarity"
    longer = f"{cut:,} of {len(lengths):,} rows are longer and are cut; the longest has {lengths.max()}"
    yield "  max_length", task.max_length, f"word pieces; {longer}"
    yield "  bad_rows", task.bad_rows, f"error, or skip: rows without text or label are left out ({left:,} are so)"
    if own.kind == "classification":
        yield "  balance", task.balance, "weights or logits: more is learnt of rare labels"


def _line(key: str, value: Any, comment: str) -> str:
    return f"{key}: {_spell(value)} # {comment}"


def _values(table: Table, column: str) -> str:
    counts = table.columns[column].counts
    shown = ", ".join(f"{' '.join(name.split())[:30]} {count:,}" for name, count in Counter(counts).most_common(3))
    return f"{len(counts):,} different values, such as {shown}"
