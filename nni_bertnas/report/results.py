"""What a study came to, for people to read."""

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from nni_bertnas.data.metrics import OF_LABEL, title
from nni_bertnas.errors import PhaseError
from nni_bertnas.report.progress import Teller
from nni_bertnas.stages.run import Result, Run
from nni_bertnas.stages.supernet import OTHER, SEARCHED
from nni_bertnas.student.runtimes import RUNTIMES
from search_space.cells import spell

Students = dict[str, Result]  # by name: the searched one, then the baselines


def best_student(run: Run) -> tuple[Path, Result]:
    """The folder and result of the searched student with the highest dev score over all seeds.

    Raises:
        PhaseError: There is none.
    """
    found = searched_students(run)
    if not found:
        raise PhaseError(f"{run.root} holds no student; make it with: bertnas run STUDY")
    return max(found, key=lambda pair: pair[1]["student"][f"dev_{run.task.metric}"])


def searched_students(run: Run) -> list[tuple[Path, Result]]:
    """Folder and result of every searched student; where an older version kept baselines, too, these are left out."""
    return [pair for pair in run.results("supernet").values() if pair[1]["student_kind"] == SEARCHED]


def show(run: Run, console: Console | Teller) -> None:
    """Print teacher against student, baselines, the architectures, the wall times, and where everything lies."""
    folder, result = best_student(run)
    console.print(comparison(run, result))
    for number, architecture in enumerate(result["architecture"]):
        console.print(f"block {number}: {spell(architecture)}", highlight=False)
    for text in filter(None, (half_or_whole(run, result), layers_or_none(run, result))):
        console.print(text, highlight=False)
    for text in collapsed_searches(run):
        console.print(text, style="yellow", highlight=False)
    show_baselines(run, console)
    times = run.read_seconds()
    if times:
        parts = ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in times.items())
        console.print(f"wall time: {parts}; together {sum(times.values()) / 60:.1f} min", highlight=False)
    if (folder / OTHER).exists():
        console.print(f"the other finalist: {folder / OTHER}", highlight=False, soft_wrap=True)
    console.print(f"student: {folder / 'student'}\neverything else: {run.root}", highlight=False, soft_wrap=True)


def layers_or_none(run: Run, result: Result) -> str:
    """In words, whether layers earned their latency; empty where nothing was compared."""
    if "compared" not in result:
        return ""
    sides = {"with layers": result["compared"]["searched"], "without": result["compared"]["bag"]}
    kept = "without layers, as it is as near" if result["kept"] == "bag" else "with layers"
    return f"dev {run.task.metric} of the student {_beside(run, sides)}: the one {kept} was kept"


def half_or_whole(run: Run, result: Result) -> str:
    """In words, whether the slower of two finalists earned its latency; empty where one was trained alone."""
    if "finals" not in result:
        return ""
    sides = {f"of {'; '.join(one['cells'])}": one for one in result["finals"]}
    return f"dev {run.task.metric} of the finalists {_beside(run, sides)}: the nearer was taken, the faster within 2 %"


def other_finals(result: Result) -> list[Mapping[str, Any]]:
    """What is kept of the finalist that was trained to its end beside the searched student; empty where none was."""
    searched = result["compared"][SEARCHED] if "compared" in result else result["student"]
    return [one for one in result.get("finals", ()) if one["latency_ms"] != searched["latency_ms"]]


def _beside(run: Run, sides: Mapping[str, Mapping[str, Any]]) -> str:
    said = (
        f"{name} {one[f'dev_{run.task.metric}'] * 100:.2f} % in {one['latency_ms']:.2f} ms"
        f" ({one['dev_logit_mse']:.3f} from the teacher's answers)"
        for name, one in sides.items()
    )
    return ", ".join(said)


def collapsed_searches(run: Run) -> list[str]:
    """In words, the cell searches whose best architecture has parameter-free operations alone."""
    results = (result for _, result in run.results("cell").values())
    return [
        f"the search of block {result['block']}, depth {result['depth']} has {result['collapsed']}"
        for result in results
        if result.get("collapsed") and result["depth"] in run.study.cell.depths and result["block"] < run.num_blocks
    ]


def compared_students(run: Run) -> dict[int, Students]:
    """By seed the searched student and the baselines that were matched to it, where there are any."""
    found: dict[int, Students] = {}
    for _, result in searched_students(run):
        found[result["seed"]] = {SEARCHED: result}
    for _, result in run.results("baselines").values():
        students = found.get(result["seed"], {})
        if SEARCHED in students and result["searched_fingerprint"] == students[SEARCHED]["fingerprint"]:
            students[result["student_kind"]] = result
    return {
        seed: dict(sorted(students.items(), key=lambda pair: _place(pair[0])))
        for seed, students in sorted(found.items())
        if len(students) > 1
    }


def _place(student: str) -> tuple[bool, str, int]:
    kind, _, number = student.rpartition("_")
    return student != SEARCHED, kind, int(number) if number.isdigit() else 0


def show_baselines(run: Run, console: Console | Teller) -> None:
    """Print the searched student beside its baselines, where there are any, and say who is better."""
    shown, metric = compared_students(run), run.task.metric
    if not shown:
        return
    scores = next(iter(shown.values()))[SEARCHED]["student"]
    splits = [key.removesuffix(f"_{metric}") for key in scores if key.endswith(f"_{metric}")]
    names = {f"{split}_{metric}": f"{split} {metric}" for split in splits}
    table = Table(title=f"{run.study.name}: the searched student beside its baselines")
    heads = (f"{name}, %" for name in names.values())
    for column in ("", "block scores", *heads, "params, M", "ms", "speed-up", "cells' cost"):
        table.add_column(column, justify="right" if column else "left", no_wrap=not column)
    lines = []
    for seed, results in shown.items():
        before = f"seed {seed}, " if len(shown) > 1 else ""
        for name, result in results.items():
            table.add_row(before + name, *_row(result, names))
        lines += [before + line for line in _verdicts(results, names)]
    for item in (table, *lines):
        console.print(item, highlight=False)


def _row(result: Mapping[str, Any], names: Mapping[str, str]) -> Iterator[str]:
    student = result["student"]
    yield " ".join(f"{score:.3f}" for score in result["block_scores"])
    yield from (f"{student[key] * 100:.2f}" for key in names)
    yield f"{student['num_params'] / 1e6:.2f}"
    yield f"{student['latency_ms']:.2f}"
    yield f"{result['speedup']:.1f}"
    yield f"{result['matched']['ratio']:.2f} {result['matched']['match']}" if "matched" in result else "1"


def _verdicts(results: Mapping[str, Mapping[str, Any]], names: Mapping[str, str]) -> Iterator[str]:
    """In words, a baseline's cells, where it is as good as the searched student, and where it is no match in cost.

    Args:
        results: Of the searched student and its baselines, by name.
        names: Keys of scores in the results -> how they are called.
    """

    def measures(result: Mapping[str, Any]) -> dict[str, tuple[float, str]]:
        # name -> what is high for a good student, and how it reads
        block_score = sum(result["block_scores"]) / len(result["block_scores"])
        scores = {name: result["student"][key] for key, name in names.items()}
        return {
            **{name: (value, f"{value * 100:.2f}") for name, value in scores.items()},
            "mean block score": (-block_score, f"{block_score:.3f}"),
        }

    searched = measures(results[SEARCHED])
    wins = dict.fromkeys(searched, 0)
    for student, result in results.items():
        if student == SEARCHED:
            continue
        cells = "; ".join(spell(architecture) for architecture in result["architecture"])
        yield f"{student}: {cells}"
        own = measures(result)
        for name in wins:
            wins[name] += searched[name][0] > own[name][0]
        if level := [name for name in own if own[name][0] >= searched[name][0]]:
            text = ", ".join(f"{name} {own[name][1]} against {searched[name][1]}" for name in level)
            yield f"{student} is as good as the searched student, or better: {text}"
        matched = result["matched"]
        if not matched["within_tolerance"]:
            pairs = zip(matched["own"], matched["searched"], strict=True)
            blocks = ", ".join(f"{own / searched:.2f}" if searched else "-" for own, searched in pairs)
            yield (
                f"{student} is no match in cost: its cells have {matched['ratio']:.2f} times the searched ones' "
                f"{matched['match']} (block by block {blocks}); nothing nearer was found"
            )
    text = ", ".join(f"{count} in {name}" for name, count in wins.items())
    yield f"of {len(results) - 1} baseline(s) the searched student is better than: {text}"


def runtime_of(result: Mapping[str, Any]) -> str:
    """In what a student was timed, in words."""
    return RUNTIMES[result.get("latency_runtime", "torch")].title


def comparison(run: Run, result: Mapping[str, Any]) -> Table:
    """The closing table."""
    metrics, labels = run.task.metrics, run.data.label_names
    table = Table(
        title=f"{run.study.name}: teacher against student, latency in {runtime_of(result)} with "
        f"{result['latency_threads']} thread(s)"
    )
    for column in ("", "teacher", "student", "student / teacher"):
        table.add_column(column, justify="left" if not column else "right")
    teacher, student = result["teacher"], result["student"]
    splits = [key.removesuffix(f"_{metrics[0]}") for key in student if key.endswith(f"_{metrics[0]}")]
    by_label = [f"{OF_LABEL}{name}" for name in labels] if run.task.multi_label else []
    for split, metric in [*itertools.product(splits, metrics), *itertools.product(splits[-1:], by_label)]:
        pair = teacher[f"{split}_{metric}"] * 100, student[f"{split}_{metric}"] * 100
        table.add_row(
            f"{split} {title(metric, labels)}, %",
            f"{pair[0]:.2f}",
            f"{pair[1]:.2f}",
            f"{pair[1] - pair[0]:+.2f} points",
        )
    for key, name, unit, digits in (
        ("num_params", "parameters, M", 1e6, 2),
        ("num_flops", "FLOPs at batch 1, M", 1e6, 1),
        ("activation_bytes", "memory of activations at batch 1, MB", 1e6, 2),
        ("latency_ms", "latency at batch 1, ms", 1, 2),
    ):
        if key not in student:  # of an older version
            continue
        a, b = teacher[key] / unit, student[key] / unit
        table.add_row(name, f"{a:.{digits}f}", f"{b:.{digits}f}", f"1 / {a / b:.1f}")
    return table
