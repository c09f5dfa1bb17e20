"""What was found in somebody's data, and what was made of it, for people to read."""

from rich.console import Console
from rich.table import Table

from nni_bertnas.data import columns
from nni_bertnas.report.data import balance, histogram, notes
from nni_bertnas.stages.draft import Draft, incomplete
from nni_bertnas.stages.run import Run

_SHOWN = 3


def show_columns(table: columns.Table, console: Console) -> None:
    """Print what every column holds."""
    shown = Table(title=f"{table.rows:,} rows")
    for name in ("column", "kind", "filled", "different", "words", "such as"):
        shown.add_column(name, justify="left" if name in ("column", "kind", "such as") else "right")
    for one in table.columns.values():
        some = " | ".join(" ".join(value.split())[:40] for value in list(one.counts)[:_SHOWN])
        filled = f"{one.filled:,} ({one.filled / table.rows:.0%})"
        shown.add_row(one.name, one.kind, filled, f"{len(one.counts):,}", f"{one.words:.1f}", some)
    console.print(shown)
    for text in table.damaged[:_SHOWN]:
        console.print(f"cannot be read: {text}", highlight=False, soft_wrap=True)


def show_draft(draft: Draft, guess: columns.Guess, table: columns.Table, console: Console) -> None:
    """Print what was guessed and why, labels, lengths, and what stands more than once."""
    for text in (*guess.reasons, *draft.notes):
        console.print(text, highlight=False, soft_wrap=True)
    data, run = draft.data, Run(draft.study)
    run.data = data  # it is read already
    console.print(balance(draft.study.name, data.label_names, data.splits, sets=run.task.multi_label))
    if left := incomplete(table, guess):
        console.print(
            f"{left:,} rows have no text or no label, and are left out (task.bad_rows: skip)", highlight=False
        )
    for text in notes(run):
        console.print(text, highlight=False)
    found, longest = draft.lengths, draft.study.task.max_length
    console.print(
        f"word pieces in train: mean {found.mean():.1f}, longest {found.max()}; {int((found > longest).sum()):,} of "
        f"{len(found):,} rows will be cut to task.max_length = {longest}",
        highlight=False,
    )
    console.print(histogram(found))
