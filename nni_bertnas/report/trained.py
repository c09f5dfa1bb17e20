"""What the students that a study has trained tell of the scores they were chosen by."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from scipy.stats import kendalltau

from nni_bertnas.report.progress import Teller
from nni_bertnas.report.results import compared_students, searched_students
from nni_bertnas.stages.run import Result, Run
from nni_bertnas.stages.supernet import SEARCHED
from search_space.cells import spell

_FEW = 4  # students, of which a ranking tells nothing yet
_AGREES = 0.3  # Kendall's tau, below which a ranking says little


@dataclass(frozen=True)
class Trained:
    """One student that was trained end to end.

    Attributes:
        name: What it is.
        score: The task's, on dev, 0 to 1.
        error: Sum of its blocks' scores.
        num_params: Parameters.
    """

    name: str
    score: float
    error: float
    num_params: int


def frontier(run: Run) -> list[tuple[str, Result]]:
    """The trained students along the front, the slowest first, by name."""
    found = [result for _, result in run.results("frontier").values()]
    found.sort(key=lambda result: (result["seed"], -result["selection"]["latency_ms"]))
    return [(f"{result['student_kind'].replace('_', ' ')}, seed {result['seed']}", result) for result in found]


def trained_students(run: Run) -> list[Trained]:
    """All students of a study with cells of the block phase, or matched to such, each once."""
    metric = f"dev_{run.task.metric}"
    named = [(f"searched, seed {result['seed']}", result) for _, result in searched_students(run)] + frontier(run)
    for seed, students in compared_students(run).items():
        named += [(f"{name}, seed {seed}", one) for name, one in students.items() if name != SEARCHED]
    return [
        Trained(name, one["student"][metric], math.fsum(one["block_scores"]), one["student"]["num_params"])
        for name, one in named
        if not any(score != score for score in one["block_scores"])
    ]


def show_frontier(run: Run, console: Console | Teller) -> None:
    """Print the students along the front, predicted and measured, where there are any, and what rankings tell."""
    found, metric = frontier(run), f"dev_{run.task.metric}"
    if found:
        table = Table(title=f"{run.study.name}: students along the front")
        for column in (
            "",
            "predicted error",
            f"dev {run.task.metric}, %",
            "predicted ms",
            "ms",
            "speed-up",
            "params, M",
        ):
            table.add_column(column, justify="right" if column else "left")
        for name, one in found:
            point, own = one["selection"], one["student"]
            table.add_row(
                name, f"{point['score']:.3f}", f"{own[metric] * 100:.2f}", f"{point['latency_ms']:.2f}",
                f"{own['latency_ms']:.2f}", f"{one['speedup']:.1f}", f"{own['num_params'] / 1e6:.2f}",
            )  # fmt: skip
        console.print(table)
        for name, one in found:
            console.print(f"{name}: {'; '.join(map(spell, one['architecture']))}", highlight=False)
    for text in warnings(trained_students(run)):
        console.print(text, style="yellow", highlight=False)


def warnings(trained: Sequence[Trained]) -> Iterator[str]:
    """Where the scores of blocks, by which students are chosen, do not rank the students that were trained."""
    if len({one.error for one in trained}) < _FEW:
        return
    scores = [one.score for one in trained]
    by_error = float(kendalltau([-one.error for one in trained], scores).statistic)
    by_params = float(kendalltau([one.num_params for one in trained], scores).statistic)
    said = f"of {len(trained)} students the scores on dev"
    if not by_error >= _AGREES:
        yield (
            f"{said} hardly follow the scores of their blocks (Kendall's tau {by_error:.2f}): do not trust the choice; "
            "train more of them (supernet.students) and take the best on dev"
        )
    if by_params > by_error:
        yield f"{said} follow the number of parameters ({by_params:.2f}) more than scores of blocks ({by_error:.2f})"
