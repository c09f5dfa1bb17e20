"""What is said of a file's columns, and what is guessed from it."""

import json
from pathlib import Path

import pandas as pd
import pytest

from nni_bertnas.data.columns import Table, guess, look
from nni_bertnas.errors import ConfigError

TEXTS = [f"word {number} and some more of them, at length" for number in range(60)]


def table(tmp_path: Path, **columns: list) -> Table:
    path = tmp_path / "rows.csv"
    pd.DataFrame({"id": range(60), "body": TEXTS, **columns}).to_csv(path, index=False)
    return look(path)


def test_columns_are_counted(tmp_path: Path) -> None:
    found = table(tmp_path, queue=["it", "hr", ""] * 20, mark=[0, 1] * 30, size=[0.5, 1.25, 3.0] * 20)
    kinds = {name: one.kind for name, one in found.columns.items()}
    assert found.rows == 60
    assert kinds == {"id": "whole", "body": "text", "queue": "text", "mark": "marks", "size": "number"}
    queue, body = found.columns["queue"], found.columns["body"]
    assert queue.filled == 40 and queue.counts == {"it": 20, "hr": 20} and body.words == 9.0


def test_damaged_rows_are_kept_apart(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text,label\na b c,1\nbroken\nd e f,0\n")
    found = look(path)
    assert found.rows == 2 and len(found.damaged) == 1 and "rows.csv:3" in found.damaged[0]


@pytest.mark.parametrize(
    ("columns", "labels", "kind"),
    [
        ({"queue": ["it", "hr", "tax"] * 20}, ("queue",), "classification"),
        ({"queue": ["it", "hr", "tax"] * 20, "label": ["a", "b"] * 30}, ("label",), "classification"),
        ({"stars": [1, 2, 3, 4, 5, 5] * 10}, ("stars",), "classification"),
        ({"likeness": [number / 7 for number in range(60)]}, ("likeness",), "regression"),
        ({"score": [float(number) for number in range(60)]}, ("score",), "regression"),
        ({"topics": ["art;law", "law", "art;war;law", "war"] * 15}, ("topics",), "multi_label"),
        ({"toxic": [0, 1] * 30, "insult": [0, 0, 1] * 20}, ("toxic", "insult"), "multi_label"),
    ],
)  # fmt: skip
def test_what_nobody_said_is_guessed(tmp_path: Path, columns: dict, labels: tuple, kind: str) -> None:
    found = guess(table(tmp_path, **columns))
    assert (found.texts, found.labels, found.kind) == (("body",), labels, kind)
    assert found.separator == (";" if "topics" in columns else None)
    assert found.reasons[0].startswith("text: body, the longest")


def test_lists_are_sets_of_labels(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"text": text, "tags": ["a", "b"][: n % 3]}) for n, text in enumerate(TEXTS)))
    found = guess(look(path))
    assert found.kind == "multi_label" and found.labels == ("tags",) and found.separator is None


def test_names_say_what_a_pair_is(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    pd.DataFrame({"Text_A": TEXTS, "text_b": TEXTS[::-1], "same": ["yes", "no"] * 30}).to_csv(path, index=False)
    assert guess(look(path)).texts == ("Text_A", "text_b")
    assert guess(look(path), texts=["text_b"]).texts == ("text_b",)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"texts": ["bodi"]}, "--text: there is no column bodi; there are id, body, queue"),
        ({"labels": ["kew"]}, "--label: there is no column kew; there are id, body, queue"),
        ({"texts": ["body"], "labels": ["body"]}, "--label: body is a text already"),
        ({"texts": ["id", "body", "queue"]}, "--text: names one column, or two of a pair"),
        ({"labels": ["id", "queue"]}, "--label: several columns have to be of 0 and 1 each, id, queue is not"),
    ],
)
def test_what_is_wrong_names_the_flag_and_the_columns(tmp_path: Path, arguments: dict, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        guess(table(tmp_path, queue=["it", "hr", "tax"] * 20), **arguments)
    assert message in str(error.value)


def test_where_nothing_looks_like_a_label_it_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--label: no column looks like a label; name one of id, body"):
        guess(table(tmp_path))
