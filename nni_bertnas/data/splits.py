"""How dev and test come out of train where a task's data have none: the same way every time, stratified by label."""

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from nni_bertnas.data.rows import Rows
from nni_bertnas.errors import ConfigError

SPLIT_SEED = 20  # fixed for good: scores of different studies stay comparable

# Takes the splits there are and the label names; gives them with train, dev, and those that are read only at the end.
HoldOut = Callable[[dict[str, Rows], Sequence[str]], dict[str, Rows]]


def split(rows: Rows, names: Sequence[str], share: float) -> tuple[Rows, Rows]:
    """Rows without a share of them, and that share, with as much of every label as the whole.

    Args:
        rows: To split.
        names: Of the labels; none for scores.
        share: Of the second part.

    Raises:
        ConfigError: There are too few rows, or a label has one alone.
    """
    from sklearn.model_selection import train_test_split  # takes a second to load

    counts = Counter(rows.labels)
    if names and (rare := [names[int(label)] for label, count in counts.items() if count < 2]):
        raise ConfigError(
            f"task: the label(s) {', '.join(rare)} have one row in train, which cannot be both learnt and tested; "
            "add rows, join labels, or give the dev and test splits as files"
        )
    indices = np.arange(len(rows))
    try:
        first, second = train_test_split(
            indices, test_size=share, stratify=rows.labels if names else None, random_state=SPLIT_SEED
        )
    except ValueError as error:
        raise ConfigError(
            f"task: {len(rows)} rows with {len(counts)} labels are too few to hold out {share:.0%} ({error}); add rows "
            "or give the dev and test splits as files"
        ) from None
    return rows.take(first), rows.take(second)


def eighths(found: dict[str, Rows], names: Sequence[str]) -> dict[str, Rows]:
    """6 : 1 : 1 train, dev, test; of data that have more than train, as :func:`like_final`."""
    if len(found) > 1:
        return like_final(found, names)
    train, rest = split(found["train"], names, 0.25)
    dev, test = split(rest, names, 0.5)
    return {"train": train, "dev": dev, "test": test}


def tenths(found: dict[str, Rows], names: Sequence[str]) -> dict[str, Rows]:
    """What is not there, of dev and test, is a tenth of train each."""
    found, share = dict(found), 0.1
    for name in ("test", "dev"):
        if name not in found:
            found["train"], found[name] = split(found["train"], names, share)
            share = 1 / 9  # of the nine tenths left
    return found


def like_final(found: dict[str, Rows], names: Sequence[str]) -> dict[str, Rows]:
    """As many rows for dev as the first of the other splits has, at most about a tenth of train."""
    first = next(len(rows) for name, rows in found.items() if name != "train")
    train, dev = split(found["train"], names, min(0.1, first / len(found["train"])))
    return {**found, "train": train, "dev": dev}
