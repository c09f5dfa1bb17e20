"""Write the README's table of students out of the raw results; nothing is measured.

    python benchmarks/table.py

The demo's figures are of benchmarks/results/demo.json, those of GLUE's tasks means, ± the standard
deviation, over the seeds in benchmarks/results/students.json (benchmarks/students.py). The table stands between the
comments that are named below.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from statistics import mean, stdev
from typing import Any

_ROOT = Path(__file__).parents[1]
_README, _RESULTS = _ROOT / "README.md", _ROOT / "benchmarks" / "results"
_OPENING, _CLOSING = "<!-- of benchmarks/table.py -->\n", "<!-- end -->"
_BUDGETS = ("10", "20")
_METRICS = {"stsb": "pearson", "mrpc": "accuracy_f1", "sst2": "accuracy", "cola": "matthews"}
_TITLES = {
    "stsb": "STS-B, Pearson",
    "mrpc": "MRPC, mean of accuracy and F1",
    "sst2": "SST-2, accuracy",
    "cola": "CoLA, Matthews",
}

Student = tuple[float, float, float]  # a score, and how many times the teacher's speed in ONNX Runtime and PyTorch


def main() -> str:
    """The README with a fresh table."""
    text = _README.read_text(encoding="utf-8")
    before, _, rest = text.partition(_OPENING)
    return before + _OPENING + table() + _CLOSING + rest.partition(_CLOSING)[2]


def table() -> str:
    """The table in Markdown."""
    heads = ["", "teacher", *(f"`min_speedup: {budget}`" for budget in _BUDGETS)]
    rows = [f"| {' | '.join(cells)} |" for cells in (heads, _demo(), *_glue())]
    return "\n".join([rows[0], "|---" * len(heads) + "|", *rows[1:], ""])


def _demo() -> list[str]:
    found = json.loads((_RESULTS / "demo.json").read_text(encoding="utf-8"))
    speeds = {name: {key: value[1] for key, value in one.items()} for name, one in found["speed_again"].items()}
    made = {"10": found["result"], "20": found["twenty"]}
    students = [
        [(made[budget]["student"]["test_accuracy"], speeds["own onnx"][budget], speeds["own torch"][budget])]
        for budget in _BUDGETS
    ]
    return _line("the demo, accuracy", made["10"]["teacher"]["test_accuracy"], students)


def _glue() -> list[list[str]]:
    found = json.loads((_RESULTS / "students.json").read_text(encoding="utf-8"))
    lines = []
    for task, metric in _METRICS.items():
        groups = [[one for key, one in found.items() if key.startswith(f"{task} {budget} ")] for budget in _BUDGETS]
        if any(groups):
            students = [[_student(one, f"glue_dev_{metric}") for one in group] for group in groups]
            lines.append(_line(_TITLES[task], next(filter(None, groups))[0]["teacher"][f"glue_dev_{metric}"], students))
    return lines


def _student(found: Mapping[str, Any], score: str) -> Student:
    return found["student"][score], found["onnx_speedup"], found["torch_speedup"]


def _line(title: str, teacher: float, budgets: list[list[Student]]) -> list[str]:
    cells = []
    for students in budgets:
        if not students:
            cells.append("")
            continue
        scores, onnx, torch = zip(*students, strict=True)
        spread = f" ± {100 * stdev(scores):.1f}" if len(scores) > 1 else ""
        cells.append(f"{100 * mean(scores):.1f}{spread} at {mean(onnx):.0f}x ({mean(torch):.0f}x)")
    return [title, f"{100 * teacher:.1f}", *cells]


if __name__ == "__main__":
    _README.write_text(main(), encoding="utf-8")
