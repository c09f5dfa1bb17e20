"""Sets of labels (multi-label tasks): each is one whole number, bit i set where label i is in it.

So a row's labels are one number everywhere, as a class is: in files, batches and stores. 0 is the empty set, and what
has no labels at all is :data:`~nni_bertnas.data.rows.UNLABELLED`.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nni_bertnas.data.rows import label_text

MOST = 62  # labels that fit into a whole number of 64 bits
_MARKS = {"1": True, "true": True, "0": False, "false": False, "": False}


def set_number(labels: Iterable[int]) -> int:
    """The number of a set of labels."""
    return sum(1 << label for label in set(labels))


def members(number: float, count: int) -> list[int]:
    """The labels of a set, of `count` that there are."""
    return [label for label in range(count) if int(number) >> label & 1]


def indicators(numbers: Tensor, count: int) -> Tensor:
    """`(rows,)` -> `(rows, count)`, 1 where the label is in the set; of rows without labels all 0."""
    return numbers.clamp(min=0).unsqueeze(1) >> torch.arange(count, device=numbers.device) & 1


def read_set(value: Any, separator: str) -> list[str] | None:
    """The names in a cell: a list, or text with a separator between them; None for what is neither.

    Args:
        value: Of the cell.
        separator: Between names where the cell is text.
    """
    if value is None or (isinstance(value, float) and value != value):
        return []
    if isinstance(value, str):
        value = value.split(separator)
    elif isinstance(value, int | float):
        value = [value]
    if not isinstance(value, list | tuple | np.ndarray):
        return None
    names = [label_text(one) for one in value]
    return None if None in names else list(dict.fromkeys(name for name in names if name))


def read_marks(cells: Mapping[str, Any]) -> list[str] | str:
    """The names of the columns that are marked, by 1 or true; by 0, false or nothing they are not.

    Args:
        cells: By name of the label.

    Returns:
        The names; a text: what is wrong.
    """
    marks = {name: label_text(cell) for name, cell in cells.items()}
    for name, mark in marks.items():
        if mark is None or mark.lower() not in _MARKS:
            return f"{name} must be 0 or 1, got {cells[name]!r}"
    return [name for name, mark in marks.items() if _MARKS[str(mark).lower()]]


def strata(numbers: Sequence[float], count: int) -> list[int]:
    """By which rows are split where sets are many: the rarest label of each, -1 where there is none.

    What has one row alone goes with the largest stratum.
    """
    often = Counter(label for number in numbers for label in members(number, count))
    found = [min(members(number, count), key=lambda label: (often[label], label), default=-1) for number in numbers]
    sizes = Counter(found)
    largest = max(sizes, key=lambda one: sizes[one])
    return [one if sizes[one] > 1 else largest for one in found]
