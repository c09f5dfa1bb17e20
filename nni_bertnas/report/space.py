"""A study's space as a table."""

from rich.console import Console
from rich.table import Table

from nni_bertnas.stages.run import Run
from nni_bertnas.student.cost import count_params
from search_space.cells import spell_choice
from search_space.listing import Space
from search_space.operations import make_operation


def show_space(run: Run, space: Space, console: Console) -> None:
    """Print every decision of a space, what each operation costs, and how many architectures there are of every depth.

    Args:
        run: Of the study.
        space: Of one depth.
        console: Takes it.
    """
    decisions = Table(title=f"space {space.name}, depth {space.depth}, width {space.hidden_size}")
    for column in ("decision", "options", "which"):
        decisions.add_column(column, justify="right" if column == "options" else "left")
    for label, options in space.choices.items():
        decisions.add_row(label, str(len(options)), ", ".join(map(spell_choice, options)))
    sizes = Table(title="parameters of each operation")
    sizes.add_column("operation")
    sizes.add_column("parameters", justify="right")
    for name in space.operations:
        sizes.add_row(name, f"{count_params(make_operation(name, space.hidden_size)):,}")
    console.print(decisions)
    console.print(sizes)
    for depth, one in sorted({**run.spaces, space.depth: space}.items()):
        console.print(f"depth {depth}: {one.count():,} architectures", highlight=False)
