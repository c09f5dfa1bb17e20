"""A study's jobs of a cluster as a table."""

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from nni_bertnas.config.cluster import JobSettings

Row = tuple[str, str, Sequence[str], JobSettings]  # name, what it does, names of those before it, what it asks for


def show_jobs(study: str, rows: Sequence[Row], numbers: Mapping[str, str], console: Console) -> None:
    """Print them.

    Args:
        study: Its name.
        rows: Of the table.
        numbers: That Slurm gave, by name; none where the jobs were not handed over.
        console: Takes it.
    """
    table = Table(title=f"{study}: jobs of Slurm")
    for column in ("job", *(["number"] if numbers else []), "what it does", "after", "asks for, each task"):
        table.add_column(column)
    for name, does, after, settings in rows:
        number = [numbers[name]] if numbers else []
        table.add_row(name, *number, does, ", ".join(after), _spell(settings))
    console.print(table)


def _spell(settings: JobSettings) -> str:
    parts = [f"{settings.hours:g} h", f"{settings.cpus} core(s)", f"{settings.memory_gib:g} GiB"]
    return ", ".join([*parts, *([f"{settings.gpus} GPU(s)"] if settings.gpus else [])])
