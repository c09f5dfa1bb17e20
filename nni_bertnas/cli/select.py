"""`bertnas select` and `bertnas front`: what students a finished search can give, without searching again."""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from nni_bertnas.cli.show import open_console
from nni_bertnas.config import BudgetSettings
from nni_bertnas.errors import ConfigError, PhaseError
from nni_bertnas.report.front import draw_front, measured_students
from nni_bertnas.stages.choice import PARAMETER_BYTES, Prices, open_prices
from nni_bertnas.stages.run import Run
from nni_bertnas.student.selection import Combination, Cut, unlike
from nni_bertnas.study_files import load_study
from search_space.cells import spell

_FIELDS = ("max_params", "max_size_mb", "max_flops", "max_latency_ms", "min_speedup")


def run(arguments: Namespace) -> None:
    """Print the best combinations within a budget, or, of `front`, all that none other beats."""
    opened, console = Run(load_study(arguments.study)), open_console()
    prices = open_prices(opened)
    if arguments.command == "front":
        found = prices.front(arguments.cost)
        console.print(table(prices, found, f"best predicted score at every {arguments.cost}"))
        if arguments.draw is not None:
            draw_front(prices, found, measured_students(opened), arguments.cost, arguments.draw)
        return
    budget = _budget(arguments)
    found = few(prices, budget, arguments.top, arguments.differ)
    if not found:
        raise PhaseError(prices.impossible(budget))
    console.print(table(prices, found, "best predicted scores within the budget"))
    _say_next(console, opened, arguments.study)


def _budget(arguments: Namespace) -> BudgetSettings:
    given = {name: getattr(arguments, name) for name in _FIELDS if getattr(arguments, name) is not None}
    counts = {"top": arguments.top, "differ": arguments.differ}
    for name, value in {**given, **counts}.items():
        if value <= 0:
            raise ConfigError(f"--{name.replace('_', '-')} must be above 0, got {value}")
    return BudgetSettings(**given)


def few(prices: Prices, budget: BudgetSettings, count: int, differ: int) -> list[Combination]:
    """The best within a budget, best first, each other than all before in so many blocks."""
    same = [range(len(block)) for block in prices.blocks]
    found: list[Combination] = []
    cuts: list[Cut] = []
    while len(found) < count and (one := prices.best(budget, cuts)) is not None:
        found.append(one)
        cuts.append(unlike(same, one.choice, differ))
    return found


def table(prices: Prices, found: Sequence[Combination], title: str) -> Table:
    """One combination a row."""
    shown = Table(title=title)
    for column in ("cells, block by block", "score", "parameters", "MB", "MFLOPs", "ms", "speed"):
        shown.add_column(column, justify="left" if column.startswith("cells") else "right")
    for one in found:
        cells = (spell(block[index].architecture) for block, index in zip(prices.blocks, one.choice, strict=True))
        shown.add_row(
            " | ".join(cells),
            f"{one.score:.3f}",
            f"{one.num_params:,}",
            f"{one.num_params * PARAMETER_BYTES / 1e6:.1f}",
            f"{one.num_flops / 1e6:.1f}",
            f"{one.latency_ms:.2f}",
            f"{prices.teacher_ms / one.latency_ms:.1f} x",
        )
    return shown


def _say_next(console: Console, opened: Run, study: Path) -> None:
    console.print(
        f"to train the first of them: set the same limits in supernet.budget of {study}, then bertnas supernet {study}",
        highlight=False,
        soft_wrap=True,
    )
