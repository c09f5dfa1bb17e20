"""What a text task is: columns, labels, metrics. One row of TASKS each."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nni_bertnas.config import TaskSettings
from nni_bertnas.data.metrics import METRICS
from nni_bertnas.data.splits import HoldOut, eighths, like_final, tenths
from nni_bertnas.errors import lookup


@dataclass(frozen=True, kw_only=True)
class GlueFiles:
    """Where a task lies in the classic GLUE folder, as `download_glue_data.py` writes it.

    Attributes:
        folder: Of the task.
        texts: Columns of the texts.
        label: Column of the label.
        header: The columns of train and dev where the files have no header.
        train: Its file; None where the task has no training rows.
        dev: Our split's name -> file with labels.
        test: Name of the file in a GLUE submission -> file without labels.
        test_texts: Columns of the texts there, where they differ.
        submit_names: Whether the GLUE server wants label names; otherwise their numbers.
    """

    folder: str
    texts: tuple[str, ...]
    label: str
    header: tuple[str, ...] | None = None
    train: str | None = "train.tsv"
    dev: Mapping[str, str] = field(default_factory=lambda: {"glue_dev": "dev.tsv"})
    test: Mapping[str, str] = field(default_factory=dict)
    test_texts: tuple[str, ...] | None = None
    submit_names: bool = False


@dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """One task.

    Attributes:
        texts: Columns of the text, or of the two texts of a pair, as the hub's data set names them.
        label: The hub's column of the label.
        label_names: In the order of the data's label numbers; kept in the saved teacher and student. Empty for
            regression, and for own data whose labels are read from its training file.
        metrics: What is reported.
        metric: The one of them that ranks.
        glue: Its place in the classic GLUE folder; None where it has none.
        hub_splits: Our split's name -> the hub's.
        hold_out: How dev, and test where there is none, come out of train.
        symmetric: Of pairs, whether the second text first has the same label.
    """

    texts: tuple[str, ...]
    label: str = "label"
    label_names: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ("accuracy",)
    metric: str = "accuracy"
    glue: GlueFiles | None = None
    hub_splits: Mapping[str, str] = field(default_factory=lambda: {"train": "train", "glue_dev": "validation"})
    hold_out: HoldOut = like_final
    symmetric: bool = False

    @property
    def pairs(self) -> bool:
        """Whether a row has two texts."""
        return len(self.texts) == 2

    @property
    def regression(self) -> bool:
        """Whether a score is predicted instead of a class."""
        return METRICS[self.metric].of_scores

    @property
    def multi_label(self) -> bool:
        """Whether a row has a set of labels, see :mod:`~nni_bertnas.data.label_sets`."""
        return METRICS[self.metric].of_sets

    @property
    def problem_type(self) -> str:
        """The name that transformers has for what is predicted."""
        if self.regression:
            return "regression"
        return "multi_label_classification" if self.multi_label else "single_label_classification"


_NLI = ("entailment", "neutral", "contradiction")
_MATCHED = ("matched", "mismatched")
_PAIR = ("sentence1", "sentence2")
_F1 = ("accuracy", "f1", "accuracy_f1")
_OF_SCORES = ("pearson", "spearman", "pearson_spearman")

TASKS: Mapping[str, TaskSpec] = {
    "rotten_tomatoes": TaskSpec(texts=("text",), label_names=("negative", "positive"), hold_out=eighths),
    "cola": TaskSpec(
        texts=("sentence",),
        label_names=("unacceptable", "acceptable"),
        metrics=("matthews", "accuracy"),
        metric="matthews",
        glue=GlueFiles(
            folder="CoLA", texts=("sentence",), label="label", header=("source", "label", "mark", "sentence"),
            test={"CoLA": "test.tsv"},
        ),
    ),
    "sst2": TaskSpec(
        texts=("sentence",),
        label_names=("negative", "positive"),
        glue=GlueFiles(folder="SST-2", texts=("sentence",), label="label", test={"SST-2": "test.tsv"}),
    ),
    "mrpc": TaskSpec(
        texts=_PAIR,
        label_names=("not_equivalent", "equivalent"),
        symmetric=True,
        metrics=_F1,
        metric="accuracy_f1",
        glue=GlueFiles(
            folder="MRPC", texts=("#1 String", "#2 String"), label="Quality", test={"MRPC": "test.tsv"}
        ),
    ),
    "qqp": TaskSpec(
        texts=("question1", "question2"),
        label_names=("not_duplicate", "duplicate"),
        symmetric=True,
        metrics=_F1,
        metric="accuracy_f1",
        glue=GlueFiles(
            folder="QQP", texts=("question1", "question2"), label="is_duplicate", test={"QQP": "test.tsv"}
        ),
    ),
    "stsb": TaskSpec(
        texts=_PAIR,
        symmetric=True,
        metrics=_OF_SCORES,
        metric="pearson_spearman",
        glue=GlueFiles(folder="STS-B", texts=_PAIR, label="score", test={"STS-B": "test.tsv"}),
    ),
    "mnli": TaskSpec(
        texts=("premise", "hypothesis"),
        label_names=_NLI,
        glue=GlueFiles(
            folder="MNLI", texts=_PAIR, label="gold_label", submit_names=True,
            dev={f"glue_dev_{part}": f"dev_{part}.tsv" for part in _MATCHED},
            test={"MNLI-m": "test_matched.tsv", "MNLI-mm": "test_mismatched.tsv"},
        ),
        hub_splits={"train": "train", **{f"glue_dev_{part}": f"validation_{part}" for part in _MATCHED}},
    ),
    "qnli": TaskSpec(
        texts=("question", "sentence"),
        label_names=("entailment", "not_entailment"),
        glue=GlueFiles(
            folder="QNLI", texts=("question", "sentence"), label="label", test={"QNLI": "test.tsv"}, submit_names=True
        ),
    ),
    "rte": TaskSpec(
        texts=_PAIR,
        label_names=("entailment", "not_entailment"),
        glue=GlueFiles(folder="RTE", texts=_PAIR, label="label", test={"RTE": "test.tsv"}, submit_names=True),
    ),
    "wnli": TaskSpec(
        texts=_PAIR,
        label_names=("not_entailment", "entailment"),
        glue=GlueFiles(folder="WNLI", texts=_PAIR, label="label", test={"WNLI": "test.tsv"}),
    ),
    "ax": TaskSpec(
        texts=("premise", "hypothesis"),
        label_names=_NLI,
        metrics=("matthews", "accuracy"),
        metric="matthews",
        glue=GlueFiles(
            folder="diagnostic", texts=("Premise", "Hypothesis"), label="Label", train=None,
            dev={"diagnostic": "diagnostic-full.tsv"}, test={"AX": "diagnostic.tsv"}, test_texts=_PAIR,
            submit_names=True,
        ),
        hub_splits={"diagnostic": "test"},
    ),
}  # fmt: skip
_OWN_METRICS = {
    "classification": ("accuracy", "f1_macro", "matthews"),
    "regression": _OF_SCORES,
    "multi_label": ("micro_f1", "macro_f1", "exact_match"),
}
_OWN_METRIC = {"classification": "accuracy", "regression": "pearson_spearman", "multi_label": "micro_f1"}


def task_spec(task: TaskSettings) -> TaskSpec:
    """The row of a study's task; made from the study's own words for own data.

    Raises:
        ConfigError: There is no such task.
    """
    own = task.custom
    if own is None:
        return lookup(TASKS, task.name, "task.name")
    metric = own.metric or _OWN_METRIC[own.kind]
    return TaskSpec(
        texts=tuple(own.text_columns),
        label=own.label_column,
        label_names=tuple(own.labels or own.label_columns or ()),
        metrics=tuple(dict.fromkeys((metric, *_OWN_METRICS[own.kind]))),
        metric=metric,
        hub_splits={"train": "train", "dev": "validation", "test": "test"},
        hold_out=tenths,
        symmetric=own.symmetric,
    )


def task_note(task: TaskSettings) -> dict[str, Any]:
    """What a saved model's configuration says of its task, for `bertnas predict`."""
    return {"name": task.name, "texts": list(task_spec(task).texts), "max_length": task.max_length}
