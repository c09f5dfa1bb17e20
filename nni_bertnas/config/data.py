"""The sections of a study that say what is learnt from."""

import dataclasses
from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from nni_bertnas.config.kinds import STRICT, Natural, PathText, Positive, Rate


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CustomSettings:
    """The user's own data: files of rows, or a folder written by `datasets`."""

    train: PathText | None = None  # .csv, .tsv, .jsonl or .parquet; needed unless source is disk
    dev: PathText | None = None  # chooses the best epoch; null holds out a tenth of train
    test: PathText | None = None  # read once, at the end; null holds out a tenth of train
    text_columns: Annotated[list[str], Field(min_length=1, max_length=2)]  # one, or two for pairs
    label_column: str = "label"
    # multi_label: a row has any number of labels: a list, or a text with label_separator between them
    kind: Literal["classification", "regression", "multi_label"] = "classification"
    label_separator: Annotated[str, Field(min_length=1)] = ","
    # multi_label: a column of 0 and 1 for every label, in place of label_column
    label_columns: Annotated[list[str], Field(min_length=2)] | None = None
    labels: Annotated[list[str], Field(min_length=2)] | None = None  # names by number; null: those in train, sorted
    quotes: Literal["csv", "literal"] = "csv"  # literal: a quote in .csv and .tsv is part of the text
    # a key of METRICS; ranks. null: accuracy, for regression pearson_spearman, for multi_label micro_f1. f1 is that of
    # the second label: the order of `labels`, or of the alphabet, says which
    metric: str | None = None
    symmetric: bool = False  # of pairs: whether the second text first has the same label, as in similarity

    @model_validator(mode="after")
    def _labels_fit(self) -> "CustomSettings":
        if self.labels is not None and (self.kind == "regression" or len(set(self.labels)) < len(self.labels)):
            raise ValueError(f"labels must differ, and be null for regression, got {self.labels}")
        columns = self.label_columns
        if columns is not None and (self.kind != "multi_label" or self.labels or len(set(columns)) < len(columns)):
            raise ValueError(f"label_columns must differ, with kind multi_label and labels null, got {columns}")
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TaskSettings:
    """The text task and where its rows come from."""

    name: str = "rotten_tomatoes"  # a key of TASKS, or custom
    # a key of SOURCES: package (the demo's), glue (the classic folder), hub, disk (written by `datasets`), files (own)
    source: str = "package"
    # glue: holds SST-2/ …; disk: the folder; hub: another name or a clone of nyu-mll/glue
    data_dir: PathText | None = None
    custom: CustomSettings | None = None  # own data; name: custom
    bad_rows: Literal["error", "skip"] = "error"  # skip: damaged rows are left out, counted and named in the log
    max_length: Annotated[int, Field(ge=8, le=512)] = 128  # word pieces a text (or pair) is cut to
    max_train_rows: Annotated[int, Field(ge=16)] | None = None  # a stratified part of train; null takes all
    # likewise of dev, and of every split that is read at the end
    max_eval_rows: Annotated[int, Field(ge=16)] | None = None
    # what teacher and student learn of rare classes: rows count by the inverse of their class's share (weights), or
    # logits learn to do without it (logits, logit adjustment); the score on frequent classes falls
    balance: Literal["off", "weights", "logits"] = "off"
    # rows of a dev or test file of own data whose text stands in train, too: left out, or kept and counted in the log.
    # Where dev or test are held out of train, equal texts stay together
    repeated: Literal["drop", "keep"] = "drop"

    @model_validator(mode="after")
    def _custom_fits(self) -> "TaskSettings":
        if (self.name == "custom") != (self.custom is not None):
            raise ValueError("custom must be given if, and only if, name is custom")
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TransferSettings:
    """Text without labels that the student learns from beside train; the teacher labels it."""

    # .txt (a text a line), or .csv, .tsv, .jsonl, .parquet with the task's columns of texts; of pairs a single text has
    # no answer, and teaches its hidden states and vector alone
    files: list[PathText] = dataclasses.field(default_factory=list)
    # of the task's source that the task does not use, whatever labels they have: of GLUE's folder test, of the hub or
    # disk any other, e.g. unsupervised
    splits: list[str] = dataclasses.field(default_factory=list)
    max_rows: Positive | None = None  # of each file and split, a fixed random part; null takes all
    reviews: Natural = 0  # sentences out of the demo package's IMDB reviews, of 290,452


@dataclass(frozen=True, kw_only=True, config=STRICT)
class GeneralSettings:
    """Pre-distillation on text of no task in particular, once per pretrained model, for all studies of `runs_dir`."""

    rows: Natural | None = None  # texts; 0: none; null: 20,000 for pairs, none for single texts
    # .txt, a text a line; none: sentences of the demo package's reviews, or, where it is not installed, train's texts
    files: list[PathText] = dataclasses.field(default_factory=list)
    epochs: Positive = 3
    batch_size: Positive = 32  # texts
    learning_rate: Rate = 2e-3  # peak
    # of so many hidden states are stored, too, and the block phase trains its cells on them before it sees the task's,
    # as long as on those, once for all studies that come to equal cells (not with block.start: cell); 0: none
    cells: Natural = 0

    @model_validator(mode="after")
    def _cells_fit(self) -> "GeneralSettings":
        if self.rows is not None and self.cells > self.rows:
            raise ValueError(f"cells must be at most rows, {self.rows}, got {self.cells}")
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class AugmentSettings:
    """TinyBERT's augmentation of the training rows; the teacher labels what comes out."""

    copies: Natural = 0  # new rows per row, at most; 0: none
    consistent: bool = True  # of pairs: a word that stands in both texts is replaced by the same word, or in neither
    # rows more per row with words dropped, repeated, swapped, replaced or put in, for tasks of single texts that ask
    # whether a text is well-formed
    corruptions: Natural = 0
    probability: Rate = 0.4  # of each word to be replaced
    top_k: Positive = 15  # words it may be replaced by
    masked_lm: PathText | None = None  # path, hub name or package:NAME; null: one is fitted to the task's text
    fit_epochs: Positive = 3  # of that fit
    vectors: PathText | None = None  # GloVe or word2vec, text or .bin; null: the teacher's input embeddings


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PairsSettings:
    """New pairs out of the texts of train, labelled by the teacher, for the student alone; all 0: none."""

    bm25: Natural = 0  # partners of every text: the best by BM25,
    near: Natural = 0  # the nearest by sentence vector,
    beyond: Natural = 0  # random ones from the ranks behind these,
    ranks: Positive = 60  # as far as this,
    random: Natural = 0  # and of all texts
    like_task: bool = True  # keep the most of them whose answers are spread as train's; false keeps all
