"""How dev and test come out of train where a task's data have none: the same way every time, stratified by label."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from nni_bertnas.data.rows import Rows
from nni_bertnas.errors import ConfigError

SPLIT_SEED = 20  # fixed for good: scores of different studies stay comparable
SPLITTING = 2  # counts what has changed of how rows are split

# The strata of labels, by which rows are split; None for scores.
Strata = Callable[[Sequence[float]], Sequence[float]] | None
# Takes the splits there are and the strata; gives them with train, dev, and those that are read only at the end.
HoldOut = Callable[[dict[str, Rows], Strata], dict[str, Rows]]


def strata_of(names: Sequence[str]) -> Strata:
    """Of classes: every class is a stratum, and has to be in both parts; none for scores, which have no names."""

    def check(labels: Sequence[float]) -> Sequence[float]:
        if rare := [names[int(label)] for label, count in Counter(labels).items() if count < 2]:
            raise ConfigError(
                f"task: the label(s) {', '.join(rare)} have one row in train, which cannot be both learnt and tested; "
                "add rows, join labels, or give the dev and test splits as files"
            )
        return labels

    return check if names else None


def split(rows: Rows, strata: Strata, share: float) -> tuple[Rows, Rows]:
    """Rows without a share of them, and that share, with as much of every stratum as the whole.

    Rows of the same text, or pair, stay together: what is tested has not been learnt.

    Args:
        rows: To split.
        strata: Of the labels.
        share: Of the second part.

    Raises:
        ConfigError: There are too few rows, or a label has one alone.
    """
    from sklearn.model_selection import train_test_split  # takes a second to load

    groups: dict[tuple[str, ...], list[int]] = {}
    for number, key in enumerate(keys(rows)):
        groups.setdefault(key, []).append(number)
    parts = list(groups.values())
    labels = [rows.labels[part[0]] for part in parts]
    found = None if strata is None else strata(labels)
    try:
        halves = train_test_split(np.arange(len(parts)), test_size=share, stratify=found, random_state=SPLIT_SEED)
    except ValueError as error:
        raise ConfigError(
            f"task: {len(parts)} different rows with {len(set(labels))} labels are too few to hold out {share:.0%} "
            f"({error}); add rows or give the dev and test splits as files"
        ) from None
    first, second = (rows.take(number for group in half for number in parts[group]) for half in halves)
    return first, second


def keys(rows: Rows) -> Iterable[tuple[str, ...]]:
    """What makes a row the same as another: its text, or both of its texts."""
    return zip(rows.texts, strict=True) if rows.pairs is None else zip(rows.texts, rows.pairs, strict=True)


def repeated(train: Rows, other: Rows) -> list[int]:
    """The rows of another split whose text, or pair, stands in train."""
    known = set(keys(train))
    return [number for number, key in enumerate(keys(other)) if key in known]


def eighths(found: dict[str, Rows], strata: Strata) -> dict[str, Rows]:
    """6 : 1 : 1 train, dev, test; of data that have more than train, as :func:`like_final`."""
    if len(found) > 1:
        return like_final(found, strata)
    train, rest = split(found["train"], strata, 0.25)
    dev, test = split(rest, strata, 0.5)
    return {"train": train, "dev": dev, "test": test}


def tenths(found: dict[str, Rows], strata: Strata) -> dict[str, Rows]:
    """What is not there, of dev and test, is a tenth of train each."""
    found, share = dict(found), 0.1
    for name in ("test", "dev"):
        if name not in found:
            found["train"], found[name] = split(found["train"], strata, share)
            share = 1 / 9  # of the nine tenths left
    return found


def like_final(found: dict[str, Rows], strata: Strata) -> dict[str, Rows]:
    """As many rows for dev as the first of the other splits has, at most about a tenth of train."""
    first = next(len(rows) for name, rows in found.items() if name != "train")
    train, dev = split(found["train"], strata, min(0.1, first / len(found["train"])))
    return {**found, "train": train, "dev": dev}
