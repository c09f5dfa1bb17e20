"""What a study came to, for people to read."""

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nni_bertnas.artifacts import RunDirectory, read_result
from nni_bertnas.config import Study
from nni_bertnas.errors import PhaseError
from nni_bertnas.tasks import task_spec

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

TIMES = "seconds.json"


def record_seconds(study: Study, stage: str, seconds: float) -> None:
    """Keep the wall time of a stage beside its results."""
    times = read_seconds(study)
    times[stage] = seconds
    (RunDirectory(study).root / TIMES).write_text(json.dumps(times, indent=1), encoding="utf-8")


def read_seconds(study: Study) -> dict[str, float]:
    """Wall time of every stage that `bertnas` ran."""
    path = RunDirectory(study).root / TIMES
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def best_student(study: Study) -> tuple[Path, dict[str, Any]]:
    """The folder and result of the student with the highest dev score over all seeds.

    Raises:
        PhaseError: There is none.
    """
    root = RunDirectory(study).supernet(study.seed).parent
    results = [(folder, read_result(folder)) for folder in sorted(root.glob("seed*"))]
    found = [(folder, result) for folder, result in results if result is not None]
    if not found:
        raise PhaseError(f"{root} holds no student; make it with: bertnas run STUDY")
    metric = task_spec(study.task).metric
    return max(found, key=lambda pair: pair[1]["student"][f"dev_{metric}"])


def show(study: Study, console: "Console") -> None:
    """Print teacher against student, the architecture, the wall times, and where everything lies."""
    folder, result = best_student(study)
    console.print(comparison(study, result))
    for number, architecture in enumerate(result["architecture"]):
        console.print(f"block {number}: {' → '.join(architecture.values())}", highlight=False)
    times = read_seconds(study)
    if times:
        parts = ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in times.items())
        console.print(f"wall time: {parts}; together {sum(times.values()) / 60:.1f} min", highlight=False)
    console.print(
        f"student: {folder / 'student'}\neverything else: {RunDirectory(study).root}", highlight=False, soft_wrap=True
    )


def comparison(study: Study, result: Mapping[str, Any]) -> "Table":
    """The closing table."""
    from rich.table import Table

    metrics = task_spec(study.task).metrics
    table = Table(title=f"{study.name}: teacher against student, latency with {result['latency_threads']} thread(s)")
    for column in ("", "teacher", "student", "student / teacher"):
        table.add_column(column, justify="left" if not column else "right")
    teacher, student = result["teacher"], result["student"]
    splits = [key.removesuffix(f"_{metrics[0]}") for key in student if key.endswith(f"_{metrics[0]}")]
    for split, metric in itertools.product(splits, metrics):
        pair = teacher[f"{split}_{metric}"] * 100, student[f"{split}_{metric}"] * 100
        table.add_row(f"{split} {metric}, %", f"{pair[0]:.2f}", f"{pair[1]:.2f}", f"{pair[1] - pair[0]:+.2f} points")
    for key, name, unit, digits in (
        ("num_params", "parameters, M", 1e6, 2),
        ("num_flops", "FLOPs at batch 1, M", 1e6, 1),
        ("latency_ms", "latency at batch 1, ms", 1, 2),
    ):
        a, b = teacher[key] / unit, student[key] / unit
        table.add_row(name, f"{a:.{digits}f}", f"{b:.{digits}f}", f"1 / {a / b:.1f}")
    return table
