"""What a text task is: columns, labels, metric. One row of TASKS each."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass


def accuracy(labels: Sequence[int], predictions: Sequence[int]) -> float:
    """Share of right predictions, 0 to 1."""
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(labels, predictions))


METRICS: dict[str, Callable[[Sequence[int], Sequence[int]], float]] = {"accuracy": accuracy}


@dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """One task.

    Attributes:
        label_names: In the order of the data's label numbers; kept in the saved teacher and student.
        metric: The number that ranks, a key of METRICS.
        glue_folder: Its folder in the classic GLUE layout; None where it has none.
    """

    label_names: tuple[str, ...]
    metric: str = "accuracy"
    glue_folder: str | None = None


TASKS: Mapping[str, TaskSpec] = {
    "rotten_tomatoes": TaskSpec(label_names=("negative", "positive")),
    "sst2": TaskSpec(label_names=("negative", "positive"), glue_folder="SST-2"),
}
