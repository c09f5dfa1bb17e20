"""Which kinds of sentence a student loses against its teacher.

    python benchmarks/lost_rows.py RUN_FOLDER [--student FOLDER] [--split glue_dev]

RUN_FOLDER is a finished study's (runs/glue-cola); its own configuration says the task. For every kind of row: how many
there are, what share teacher and student have right (of scores, their mean absolute errors), and how often they agree.
Ends with the rows on which they differ most. The last line is one JSON object; nothing is written.
"""

import argparse
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from common import finish, start

from nni_bertnas.data.rows import Rows
from nni_bertnas.data.task_data import load_task
from nni_bertnas.data.tasks import task_spec
from nni_bertnas.deploy.predict import load_predictor
from nni_bertnas.study_files import load_study

_SHOWN = 12
_NEGATION = re.compile(r"\b(not|n't|never|no|nothing|nobody|neither|nor|without|hardly)\b|n't\b", re.IGNORECASE)
_CONTRAST = re.compile(r"\b(but|though|although|despite|yet|however|while|instead)\b", re.IGNORECASE)
_RELATIVE = re.compile(r"\b(who|whom|which|that|what|where|whose)\b", re.IGNORECASE)
_REFERENCE = re.compile(r"\b(himself|herself|itself|themselves|myself|each other|one another)\b", re.IGNORECASE)

Kind = Callable[[str], bool]
_SINGLE: Mapping[str, Kind] = {
    "all": lambda text: True,
    "up to 7 words": lambda text: len(text.split()) <= 7,
    "8 to 15 words": lambda text: 8 <= len(text.split()) <= 15,
    "16 words and more": lambda text: len(text.split()) >= 16,
    "negation": lambda text: bool(_NEGATION.search(text)),
    "contrast": lambda text: bool(_CONTRAST.search(text)),
    "relative or question word": lambda text: bool(_RELATIVE.search(text)),
    "reflexive": lambda text: bool(_REFERENCE.search(text)),
    "question": lambda text: text.rstrip().endswith("?"),
}


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


def _overlap(one: str, other: str) -> float:
    return len(_words(one) & _words(other)) / max(1, len(_words(one) | _words(other)))


def _numbers(text: str) -> set[str]:
    return set(re.findall(r"\d+", text))


_PAIRED: Mapping[str, Callable[[str, str], bool]] = {
    "all": lambda one, other: True,
    "overlap under 0.4": lambda one, other: _overlap(one, other) < 0.4,
    "overlap 0.4 to 0.6": lambda one, other: 0.4 <= _overlap(one, other) < 0.6,
    "overlap 0.6 and more": lambda one, other: _overlap(one, other) >= 0.6,
    "same words, another order": lambda one, other: _words(one) == _words(other) and one != other,
    "other numbers": lambda one, other: _numbers(one) != _numbers(other),
    "negation in one": lambda one, other: bool(_NEGATION.search(one)) != bool(_NEGATION.search(other)),
    "lengths differ by a third": lambda one, other: abs(len(one) - len(other)) > max(len(one), len(other)) / 3,
}


def kinds_of(rows: Rows) -> dict[str, np.ndarray]:
    """Which rows are of every kind, `(num_rows,)` each."""
    if rows.pairs is None:
        return {name: np.array([kind(text) for text in rows.texts]) for name, kind in _SINGLE.items()}
    both = list(zip(rows.texts, rows.pairs, strict=True))
    return {name: np.array([kind(*pair) for pair in both]) for name, kind in _PAIRED.items()}


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--student", type=Path)
    parser.add_argument("--split", default="glue_dev")
    arguments = parser.parse_args()
    start(1)
    folder = arguments.student or arguments.run / "supernet" / "seed0" / "student"
    task = load_study(folder.parent / "study.yml").task
    rows = load_task(task).splits[arguments.split]
    truth = np.array(rows.labels)
    found = {name: load_predictor(path).probabilities(rows) for name, path in (
        ("teacher", arguments.run / "teacher"), ("student", folder)
    )}  # fmt: skip
    scores = task_spec(task).regression
    good = {
        name: np.abs(one[:, 0] - truth) if scores else (one.argmax(1) == truth).astype(float)
        for name, one in found.items()
    }
    gap = np.abs(found["teacher"] - found["student"]).max(1)
    same = gap < 0.5 if scores else found["teacher"].argmax(1) == found["student"].argmax(1)
    labels = {} if scores else {f"label {number}": truth == number for number in np.unique(truth)}
    table = {}
    for name, chosen in {**kinds_of(rows), **labels}.items():
        if chosen.any():
            table[name] = {
                "rows": int(chosen.sum()),
                **{side: round(float(one[chosen].mean()), 3) for side, one in good.items()},
                "agreement": round(float(same[chosen].mean()), 3),
            }
            print(f"{name:28}", *(f"{key} {value:7}" for key, value in table[name].items()))
    for number in np.argsort(-gap)[:_SHOWN]:
        print(
            f"label {truth[number]:g}, teacher {found['teacher'][number, -1]:.2f}, student "
            f"{found['student'][number, -1]:.2f}: {rows.texts[number]}"
            + ("" if rows.pairs is None else f" | {rows.pairs[number]}")
        )
    finish(table)


if __name__ == "__main__":
    main()
