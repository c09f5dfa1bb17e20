"""What a text task is: columns, labels, metrics. One row of TASKS each."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from nni_bertnas.config import TaskConfig

Numbers = Sequence[float] | np.ndarray


def accuracy(labels: Numbers, predictions: Numbers) -> float:
    """Share of right predictions, 0 to 1."""
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(labels, predictions))


def f1(labels: Numbers, predictions: Numbers) -> float:
    """F1 of class 1, 0 to 1; 0 where it is neither there nor predicted."""
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predictions, zero_division=0))


def f1_macro(labels: Numbers, predictions: Numbers) -> float:
    """Unweighted mean of every class's F1, 0 to 1."""
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predictions, average="macro", zero_division=0))


def matthews(labels: Numbers, predictions: Numbers) -> float:
    """Matthews correlation, -1 to 1; 0 for a constant prediction."""
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(labels, predictions))


def pearson(labels: Numbers, predictions: Numbers) -> float:
    """Pearson correlation, -1 to 1; 0 for a constant prediction."""
    return _correlation("pearsonr", labels, predictions)


def spearman(labels: Numbers, predictions: Numbers) -> float:
    """Spearman rank correlation, -1 to 1; 0 for a constant prediction."""
    return _correlation("spearmanr", labels, predictions)


def _correlation(name: str, labels: Numbers, predictions: Numbers) -> float:
    from scipy import stats

    if np.ptp(labels) == 0 or np.ptp(predictions) == 0:  # undefined; a model that learnt nothing is worth 0
        return 0.0
    return float(getattr(stats, name)(labels, predictions)[0])


def accuracy_f1(labels: Numbers, predictions: Numbers) -> float:
    """Mean of accuracy and F1, as the GLUE benchmark averages MRPC and QQP (arXiv 1804.07461)."""
    return (accuracy(labels, predictions) + f1(labels, predictions)) / 2


def pearson_spearman(labels: Numbers, predictions: Numbers) -> float:
    """Mean of Pearson and Spearman, as the GLUE benchmark averages STS-B (arXiv 1804.07461)."""
    return (pearson(labels, predictions) + spearman(labels, predictions)) / 2


METRICS: dict[str, Callable[[Numbers, Numbers], float]] = {
    "accuracy": accuracy,
    "f1": f1,
    "f1_macro": f1_macro,
    "accuracy_f1": accuracy_f1,
    "matthews": matthews,
    "pearson": pearson,
    "spearman": spearman,
    "pearson_spearman": pearson_spearman,
}
REGRESSION_METRICS = ("pearson", "spearman", "pearson_spearman")


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
    """

    texts: tuple[str, ...]
    label: str = "label"
    label_names: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ("accuracy",)
    metric: str = "accuracy"
    glue: GlueFiles | None = None
    hub_splits: Mapping[str, str] = field(default_factory=lambda: {"train": "train", "glue_dev": "validation"})

    @property
    def regression(self) -> bool:
        """Whether a score is predicted instead of a class."""
        return self.metric in REGRESSION_METRICS


_NLI = ("entailment", "neutral", "contradiction")
_MATCHED = ("matched", "mismatched")
_PAIR = ("sentence1", "sentence2")
_F1 = ("accuracy", "f1", "accuracy_f1")

TASKS: Mapping[str, TaskSpec] = {
    "rotten_tomatoes": TaskSpec(texts=("text",), label_names=("negative", "positive")),
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
        metrics=_F1,
        metric="accuracy_f1",
        glue=GlueFiles(
            folder="MRPC", texts=("#1 String", "#2 String"), label="Quality", test={"MRPC": "test.tsv"}
        ),
    ),
    "qqp": TaskSpec(
        texts=("question1", "question2"),
        label_names=("not_duplicate", "duplicate"),
        metrics=_F1,
        metric="accuracy_f1",
        glue=GlueFiles(
            folder="QQP", texts=("question1", "question2"), label="is_duplicate", test={"QQP": "test.tsv"}
        ),
    ),
    "stsb": TaskSpec(
        texts=_PAIR,
        metrics=REGRESSION_METRICS,
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
_OWN_METRICS = {"classification": ("accuracy", "f1_macro", "matthews"), "regression": REGRESSION_METRICS}
_OWN_METRIC = {"classification": "accuracy", "regression": "pearson_spearman"}


def task_spec(task: "TaskConfig") -> TaskSpec:
    """The row of a study's task; made from the study's own words for own data."""
    own: Any = task.custom
    if own is None:
        return TASKS[task.name]
    metric = own.metric or _OWN_METRIC[own.kind]
    return TaskSpec(
        texts=tuple(own.text_columns),
        label=own.label_column,
        label_names=tuple(own.labels or ()),
        metrics=tuple(dict.fromkeys((metric, *_OWN_METRICS[own.kind]))),
        metric=metric,
        hub_splits={"train": "train", "dev": "validation", "test": "test"},
    )
