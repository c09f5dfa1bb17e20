"""Predicted scores against a cost, and the students that were trained, as a picture."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nni_bertnas.errors import ConfigError
from nni_bertnas.report.drawing import ENDINGS
from nni_bertnas.report.results import compared_students, other_finals, searched_students
from nni_bertnas.report.trained import frontier
from nni_bertnas.stages.choice import Prices
from nni_bertnas.stages.run import Run
from nni_bertnas.stages.supernet import SEARCHED
from nni_bertnas.student.selection import Combination

_TITLES = {"num_params": "parameters, M", "num_flops": "MFLOPs at batch 1", "latency_ms": "ms at batch 1"}
_MARKERS = "os^Dv"
_UNITS = {"num_params": 1e6, "num_flops": 1e6, "latency_ms": 1.0}


@dataclass(frozen=True)
class Measured:
    """A model that was trained.

    Attributes:
        name: What it is.
        score: The task's, on dev, 0 to 1.
        costs: By name.
    """

    name: str
    score: float
    costs: Mapping[str, float]


def measured_students(run: Run) -> list[Measured]:
    """Teacher, searched students and baselines that a study has trained, with what they were measured to cost."""
    metric, found = f"dev_{run.task.metric}", {}
    for _, result in searched_students(run):
        found["teacher"] = result["teacher"]
        found[f"searched, seed {result['seed']}"] = result["student"]
        found |= {f"other finalist, seed {result['seed']}": one for one in other_finals(result)}
        if "compared" in result:
            found[f"no layers, seed {result['seed']}"] = result["compared"]["bag"]
    found |= {name: one["student"] for name, one in frontier(run)}
    for seed, students in compared_students(run).items():
        found |= {f"{name}, seed {seed}": one["student"] for name, one in students.items() if name != SEARCHED}
    return [Measured(name, side[metric], side) for name, side in found.items()]


def draw_front(
    prices: Prices, found: Sequence[Combination], measured: Sequence[Measured], cost: str, path: Path
) -> None:
    """Write the picture: above the predicted scores, all on the front; below what was measured, where there is any.

    Raises:
        ConfigError: matplotlib is not installed, or the file cannot be written.
    """
    shown = sorted((one for one in measured if cost in one.costs), key=lambda one: -one.costs[cost])
    figure = new_figure(path, figsize=(7, 7 if shown else 4))
    axes = figure.subplots(2 if shown else 1, 1, squeeze=False)[:, 0]
    unit = _UNITS[cost]
    axes[0].step([getattr(one, cost) / unit for one in found], [one.score for one in found], where="pre", marker="o")
    axes[0].set(xlabel=_TITLES[cost], ylabel="predicted error, sum over blocks", title="predicted, the less the better")
    if shown:
        for number, one in enumerate(shown):  # colours begin anew after ten
            marker = _MARKERS[number // 10 % len(_MARKERS)]
            axes[1].scatter(one.costs[cost] / unit, 100 * one.score, marker=marker, label=one.name)
        axes[1].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=7)  # beside, where it covers no point
        axes[1].set(xlabel=_TITLES[cost], ylabel="score on dev, %", title="measured, the more the better", xscale="log")
    save_figure(figure, path)


def new_figure(path: Path, figsize: tuple[float, float]) -> Any:
    """An empty picture, once it is sure that it can be made.

    Raises:
        ConfigError: The file's ending is none of a picture, or matplotlib is not installed.
    """
    if path.suffix.lower() not in ENDINGS:
        raise ConfigError(f"--draw {path}: must end in {' or '.join(ENDINGS)}")
    try:  # an extra
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("--draw needs matplotlib; install it with pip install 'nni-bertnas[plots]'") from None
    return Figure(figsize=figsize, layout="constrained")


def save_figure(figure: Any, path: Path) -> None:
    """Write a picture.

    Raises:
        ConfigError: It cannot be written.
    """
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise ConfigError(f"--draw {path}: cannot be written ({error.strerror})") from error
