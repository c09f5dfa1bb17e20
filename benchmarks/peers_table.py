"""Write the tables and the picture of docs/peers.md out of benchmarks/results/curve.json; nothing is measured.

    python benchmarks/peers_table.py

The tables stand between the comments that are named below. Bold is that than which nothing in the same table is both as
good and as fast at a text by itself; in the picture what is clearly better than all that is faster, or smaller, has its
name, ours are red, bags orange, the teacher's forms black.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

_ROOT = Path(__file__).parents[1]
_PICTURE = _ROOT / "docs" / "pictures" / "curve.png"
_PAGE, _RAW = _ROOT / "docs" / "peers.md", _ROOT / "benchmarks" / "results" / "curve.json"
_OPENING, _CLOSING = "<!-- of benchmarks/peers_table.py -->\n", "<!-- end -->"
_TITLES = {"mrpc": "MRPC", "stsb": "STS-B", "cola": "CoLA", "sst2": "SST-2", "demo": "Rotten Tomatoes"}
_HEADS = ("system", "score", "ms, one text", "model alone", "ms a text of 32", "MB")
_TIMES = (("batch 1, whole", 1), ("batch 1, model", 1), ("batch 32, whole", 32))
_COLOURS = {"ours": "tab:red", "bag": "tab:orange", "teacher": "black"}  # by a name's beginning
_DEEP, _NEAR = 15, 0.3  # points: under the best, where the picture ends; above what is cheaper, to have a name

System = Sequence[Mapping[str, Any]]  # its seeds


def main() -> str:
    """The page with fresh tables."""
    before, _, rest = _PAGE.read_text(encoding="utf-8").partition(_OPENING)
    return before + _OPENING + tables() + _CLOSING + rest.partition(_CLOSING)[2]


def tables() -> str:
    """A table in Markdown for every task."""
    return "\n".join(_table(title, systems) for title, systems in _tasks().items())


def draw(path: Path) -> None:
    """Score against time and size, a row of pictures a task; what is far below the best stands on the lower edge."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    tasks = _tasks()
    drawn, axes = pyplot.subplots(len(tasks), 2, figsize=(12, 4.4 * len(tasks)), squeeze=False)
    for row, (title, systems) in zip(axes, tasks.items(), strict=True):
        best = 100 * max(map(_score, systems.values()))
        sizes = {name: mean(one["size_mb"] for one in system) for name, system in systems.items()}
        times = {name: time for name, system in systems.items() if (time := _time(system, *_TIMES[0])) is not None}
        for axis, costs, label in zip(row, (times, sizes), ("ms, one text, one thread", "MB"), strict=True):
            front, above = -float("inf"), True
            for name in sorted(costs, key=lambda name: (costs[name], -_score(systems[name]))):
                score = 100 * _score(systems[name])
                at, inside = (costs[name], max(score, best - _DEEP)), score >= best - _DEEP
                colour = next((own for start, own in _COLOURS.items() if name.startswith(start)), "tab:blue")
                axis.scatter(*at, color=colour, s=22, marker="o" if inside else "v")
                if score > front + _NEAR:
                    above = not above
                    place = {"ha": "right", "xytext": (0, 5)} if above else {"ha": "left", "xytext": (0, -11)}
                    axis.annotate(name, at, fontsize=7, textcoords="offset points", **place)
                    front = score
            axis.margins(0.25, 0.15)
            axis.set(xscale="log", xlabel=label, ylabel="score, %", title=title)
            axis.xaxis.set_major_formatter("{x:g}")
            axis.grid(alpha=0.3)
    drawn.tight_layout()
    drawn.savefig(path, dpi=90)


def _tasks() -> dict[str, dict[str, list[Mapping[str, Any]]]]:
    """By task and system its seeds."""
    found, tasks = json.loads(_RAW.read_text(encoding="utf-8")), {}
    for task, title in _TITLES.items():
        systems: dict[str, list[Mapping[str, Any]]] = {}
        for key, one in found.items():
            if key.startswith(f"{task} | ") and "scores" in one:
                systems.setdefault(key.split(" | ")[1], []).append(one)
        if systems:
            tasks[title] = systems
    return tasks


def _table(title: str, systems: Mapping[str, System]) -> str:
    times = {name: _time(system, *_TIMES[0]) or float("inf") for name, system in systems.items()}
    best, rows = float("inf"), []
    for name in sorted(systems, key=lambda name: (-_score(systems[name]), times[name])):
        rows.append(_line(name, systems[name], bold=times[name] < best))
        best = min(best, times[name])
    heads = f"| {' | '.join(_HEADS)} |\n{'|---' * len(_HEADS)}|"
    return "\n".join([f"### {title}", "", heads, *rows, ""])


def _line(name: str, system: System, *, bold: bool) -> str:
    spread = f" ± {100 * stdev(one['score'] for one in system):.1f}" if len(system) > 1 else ""
    times = [_time(system, *which) for which in _TIMES]
    cells = [
        f"**{name}**" if bold else name,
        f"{100 * _score(system):.1f}{spread}",
        *("" if time is None else f"{time:.2f}" for time in times),
        f"{mean(one['size_mb'] for one in system):.1f}",
    ]
    return f"| {' | '.join(cells)} |"


def _score(system: System) -> float:
    return mean(one["score"] for one in system)


def _time(system: System, what: str, texts: int) -> float | None:
    return mean(one["ms"][what] for one in system) / texts if all("ms" in one for one in system) else None


if __name__ == "__main__":
    _PAGE.write_text(main(), encoding="utf-8")
    draw(_PICTURE)
