"""Measured speeds of models, for people to read."""

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from nni_bertnas.artifacts import write_whole
from nni_bertnas.data.rows import Rows
from nni_bertnas.deploy.bench import BATCHES, LENGTHS, REAL, Speed, bench, to_json
from nni_bertnas.errors import ConfigError
from nni_bertnas.report.exports import STUDY_ENDINGS, find_exported, model_texts, read_some, study_of
from nni_bertnas.report.front import new_figure, save_figure
from nni_bertnas.report.results import best_student
from nni_bertnas.runtime.manifest import FILE
from nni_bertnas.stages.run import Run
from nni_bertnas.student.latency import describe_machine
from nni_bertnas.study_files import load_study

_ROWS = 60


def benched(paths: Sequence[Path], rows: Path | None, *, threads: int) -> list[Speed]:
    """Measure models in turns.

    Args:
        paths: Folders of saved or exported models, or studies, each of which stands for its teacher and best student.
        rows: A file with rows of the task; None takes dev of the first one's study, where one lies in a run.
        threads: Of every pass.

    Raises:
        ConfigError: There is no such model, or the models read different texts.
        PhaseError: A study has no student yet.
    """
    folders: list[Path] = []
    for path in paths:
        if path.suffix in STUDY_ENDINGS:
            run = Run(load_study(path))
            folders += [run.folder("teacher"), best_student(run)[0] / "student"]
        else:
            folders.append(path)
    texts = [model_texts(folder) for folder in folders]
    if len({len(one) for one in texts if one}) > 1:
        raise ConfigError("MODEL: some read single texts and some pairs; measure them apart")
    columns: list[str] = next(filter(None, texts), [])
    return bench(folders, _rows(folders, columns, rows), threads=threads, pairs=len(columns) == 2)


def _rows(folders: Sequence[Path], columns: Sequence[str], rows: Path | None) -> Rows | None:
    if rows is not None:
        return read_some(rows, columns, _ROWS)
    for folder in folders:
        if not (folder / FILE).is_file() and study_of(folder) is not None:
            held_out = find_exported(folder).held_out
            return held_out.take(range(min(_ROWS, len(held_out))))
    return None


def speed_table(speeds: Sequence[Speed], threads: int) -> Table:
    """Medians at batch 1, the 95th percentile of real rows, rows a second in batches, and what a process takes."""
    shapes = [f"1 x {length}" for length in LENGTHS]
    many = f"{BATCHES[-1]} x {LENGTHS[1]}"
    table = Table(
        title=f"{threads} thread(s); milliseconds of a pass of batch x length, medians",
        caption="real: rows of the task one by one, their words cut into pieces within the time; start: from a fresh "
        "process's imports to its first answer, with the memory that it has then",
    )
    heads = ("real", "95 %", f"rows/s {many}", "MB", "start, s", "RSS, MB")
    for column in ("", "engine", *shapes, *heads):
        named = column in ("", "engine")
        table.add_column(column, justify="left" if named else "right", min_width=12 if named else None, overflow="fold")
    for one in speeds:
        real, batch = one.passes.get(REAL), one.passes.get(many)
        table.add_row(
            one.name,
            one.engine,
            *(f"{one.passes[shape]['p50_ms']:.2f}" if shape in one.passes else "-" for shape in shapes),
            *(f"{real[name]:.2f}" if real else "-" for name in ("p50_ms", "p95_ms")),
            f"{batch['rows_per_s']:,.0f}" if batch else "-",
            f"{one.size_mb:.1f}",
            f"{one.first_answer_s:.2f}",
            f"{one.resident_mb:,.0f}" if one.resident_mb else "-",
        )
    return table


def write_speeds(speeds: Sequence[Speed], threads: int, path: Path) -> None:
    """Write all figures as JSON.

    Raises:
        ConfigError: The file cannot be written.
    """
    try:
        write_whole(path, to_json(speeds, describe_machine(), threads))
    except OSError as error:
        raise ConfigError(f"--json {path}: cannot be written ({error.strerror})") from error


def draw_speeds(speeds: Sequence[Speed], path: Path) -> None:
    """Write a picture: milliseconds over lengths at batch 1, and rows a second over batches.

    Raises:
        ConfigError: matplotlib is not installed, or the file cannot be written.
    """
    figure = new_figure(path, figsize=(12, 4.5))
    left, right = figure.subplots(1, 2)
    for one in speeds:
        label = f"{one.name} ({one.engine})"
        lengths = [length for length in LENGTHS if f"1 x {length}" in one.passes]
        left.plot(lengths, [one.passes[f"1 x {length}"]["p50_ms"] for length in lengths], marker="o", label=label)
        batches = [batch for batch in BATCHES if f"{batch} x {LENGTHS[1]}" in one.passes]
        rates = [one.passes[f"{batch} x {LENGTHS[1]}"]["rows_per_s"] for batch in batches]
        right.plot(batches, rates, marker="o", label=label)
    left.set(xlabel="word pieces", ylabel="ms, median, batch 1", yscale="log", xticks=LENGTHS)
    right.set(xlabel=f"batch of {LENGTHS[1]} word pieces", ylabel="rows a second", yscale="log", xticks=BATCHES)
    figure.legend(*left.get_legend_handles_labels(), fontsize=8, loc="outside right upper")
    save_figure(figure, path)
