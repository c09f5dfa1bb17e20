"""What a study's data look like to its model, for people to read."""

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.bar import Bar
from rich.console import Console
from rich.table import Table

from nni_bertnas.data.models import load_tokenizer
from nni_bertnas.data.rows import Rows
from nni_bertnas.data.tokens import tokenize
from nni_bertnas.stages.run import Run

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BARS = 10
_EXAMPLES = 3


def show_data(run: Run, console: Console) -> None:
    """Print rows and label balance of every split, the lengths of train in word pieces, and what the model will see.

    Raises:
        ConfigError: The data or the tokenizer cannot be read.
    """
    data, task = run.data, run.study.task
    tokenizer = load_tokenizer(run.study.teacher.model)
    console.print(balance(task.name, data.label_names, data.splits))
    train = data.splits["train"]
    longest = task.max_length
    found = piece_lengths(tokenizer, train)
    cut = int((found > longest).sum())
    console.print(
        f"word pieces in train: mean {found.mean():.1f}, longest {found.max()}; {cut:,} of {len(found):,} rows will be "
        f"cut to task.max_length = {longest}",
        highlight=False,
    )
    console.print(histogram(found))
    console.print("examples of train, as the model sees them:", highlight=False)
    shown = train.take(np.asarray(_examples(train)))
    tokens = tokenize(tokenizer, shown, longest)
    for number, label in enumerate(shown.labels):
        name = data.label_names[int(label)] if data.label_names else f"{label:g}"
        pieces = tokenizer.convert_ids_to_tokens(tokens.tokens[tokens.offsets[number] : tokens.offsets[number + 1]])
        console.print(f"  {name}: {' '.join(pieces)}", highlight=False, markup=False, soft_wrap=True)


def balance(name: str, label_names: tuple[str, ...], splits: dict[str, Rows]) -> Table:
    """Rows of every split, and of every label; of scores, their range."""
    table = Table(title=f"{name}: rows")
    for column in ("", *splits):
        table.add_column(column, justify="right" if column else "left")
    table.add_row("rows", *(f"{len(rows):,}" for rows in splits.values()))
    if not label_names:
        for what, measure in (
            ("lowest", np.min),
            ("mean", np.mean),
            ("highest", np.max),
            ("standard deviation of", np.std),
        ):
            table.add_row(f"{what} score", *(f"{measure(rows.labels):.2f}" for rows in splits.values()))
    counts = [Counter(rows.labels) for rows in splits.values()]
    for number, label in enumerate(label_names):
        table.add_row(label, *(f"{one[number]:,} ({one[number] / one.total():.1%})" for one in counts))
    return table


def piece_lengths(tokenizer: "PreTrainedTokenizerBase", rows: Rows) -> np.ndarray:
    """Word pieces of every row, special ones included, uncut: `(num_rows,)`."""
    texts: list[Any] = [rows.texts] if rows.pairs is None else [rows.texts, rows.pairs]
    encoded = tokenizer(*texts, truncation=False, verbose=False, return_attention_mask=False)["input_ids"]
    return np.asarray([len(ids) for ids in encoded])


def histogram(found: np.ndarray) -> Table:
    """How many rows have which length."""
    table = Table()
    for column in ("pieces", "rows", ""):
        table.add_column(column, justify="left" if not column else "right")
    counts, edges = np.histogram(found, bins=min(_BARS, int(np.ptp(found)) + 1))
    for number, count in enumerate(counts):
        first, last = int(np.ceil(edges[number])), int(np.ceil(edges[number + 1])) - 1
        if number == len(counts) - 1:
            last = int(found.max())
        table.add_row(f"{first} to {last}", f"{count:,}", Bar(counts.max(), 0, int(count), width=40))
    return table


def _examples(rows: Rows) -> list[int]:
    """The first row of every label, and more from the beginning."""
    firsts = {label: number for number, label in reversed(list(enumerate(rows.labels)))}
    return list(dict.fromkeys([*sorted(firsts.values()), *range(len(rows))]))[:_EXAMPLES]
