"""`bertnas profile`: what operations and the fixed parts of students take on this machine."""

from argparse import Namespace

from rich.table import Table

from nni_bertnas.cli.show import open_console
from nni_bertnas.errors import ConfigError, PhaseError
from nni_bertnas.stages.choice import profile
from nni_bertnas.stages.run import Run
from nni_bertnas.student.latency import LatencyTable, Part
from nni_bertnas.study_files import load_study


def run(arguments: Namespace) -> None:
    """Measure what is not known, and print it all.

    Raises:
        PhaseError: Other work ran meanwhile.
    """
    if wrong := [batch for batch in arguments.batch if batch < 1]:
        raise ConfigError(f"--batch must be above 0, got {wrong[0]}")
    opened, console = Run(load_study(arguments.study)), open_console()
    for batch in arguments.batch:
        table, parts = profile(opened, batch)
        console.print(show(table, parts))
        if not table.quiet:
            raise PhaseError("other work ran meanwhile, so nothing was kept; do it again where nothing else runs")
        console.print(f"kept in {table.path}", highlight=False, soft_wrap=True)


def show(table: LatencyTable, parts: dict[str, Part]) -> Table:
    """Milliseconds by part and length."""
    machine = table.machine
    title = f"ms at batch {table.batch}, {table.threads} thread(s), {machine['runtime']}, {machine['processor']}"
    shown = Table("part, by length", title=title)
    grid = table.lengths(parts["teacher"])
    for length in grid:
        shown.add_column(str(length), justify="right")
    for name, part in parts.items():
        shown.add_row(name, *(f"{table.at(part, length):.3g}" for length in grid))
    return shown
