"""What a study's data look like to its model, for people to read."""

from collections import Counter
from collections.abc import Iterator

import numpy as np
from rich.bar import Bar
from rich.console import Console
from rich.table import Table

from nni_bertnas.data.label_sets import members
from nni_bertnas.data.metrics import METRICS
from nni_bertnas.data.models import load_tokenizer
from nni_bertnas.data.rows import Rows
from nni_bertnas.data.splits import keys, repeated
from nni_bertnas.data.tokens import piece_lengths, tokenize
from nni_bertnas.stages.run import Run

_BARS = 10
_EXAMPLES = 3


def show_data(run: Run, console: Console) -> None:
    """Print rows and label balance of every split, the lengths of train in word pieces, and what the model will see.

    Raises:
        ConfigError: The data or the tokenizer cannot be read.
    """
    data, task = run.data, run.study.task
    tokenizer = load_tokenizer(run.study.teacher.model, run.study.teacher.trust_remote_code)
    console.print(balance(task.name, data.label_names, data.splits, sets=run.task.multi_label))
    for text in notes(run):
        console.print(text, highlight=False)
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
        name = f"{label:g}"
        if data.label_names:
            own = members(label, len(data.label_names)) if run.task.multi_label else [int(label)]
            name = ", ".join(data.label_names[one] for one in own) or "no label"
        pieces = tokenizer.convert_ids_to_tokens(tokens.tokens[tokens.offsets[number] : tokens.offsets[number + 1]])
        console.print(f"  {name}: {' '.join(pieces)}", highlight=False, markup=False, soft_wrap=True)


def notes(run: Run) -> Iterator[str]:
    """What a reader of the scores has to know: rows that are also in train, and which label F1 is of."""
    data = run.data
    for name, rows in data.splits.items():
        if name != "train" and (same := len(repeated(data.splits["train"], rows))):
            yield f"{same:,} of {len(rows):,} rows of {name} stand in train, too"
    texts = Counter(keys(data.splits["train"]))
    if more := sum(texts.values()) - len(texts):
        yield f"{more:,} of {texts.total():,} rows of train repeat the text of another"
    if METRICS[run.task.metric].two_labels and data.label_names:
        yield f"F1 is that of {data.label_names[1]}; the order of task.custom.labels says of which"


def balance(name: str, label_names: tuple[str, ...], splits: dict[str, Rows], *, sets: bool = False) -> Table:
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
    for number, label in enumerate(label_names):
        counts = [
            (sum(int(one) >> number & 1 if sets else one == number for one in rows.labels), len(rows))
            for rows in splits.values()
        ]
        table.add_row(label, *(f"{count:,} ({count / total:.1%})" for count, total in counts))
    return table


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
