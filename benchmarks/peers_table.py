"""Write the tables of docs/peers.md out of benchmarks/results/curve.json (benchmarks/curve.py); nothing is measured.

    python benchmarks/peers_table.py

The tables stand between the comments that are named below. Bold is that than which nothing in the same table is both as
good and as fast at a text by itself.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

_ROOT = Path(__file__).parents[1]
_PAGE, _RAW = _ROOT / "docs" / "peers.md", _ROOT / "benchmarks" / "results" / "curve.json"
_OPENING, _CLOSING = "<!-- of benchmarks/peers_table.py -->\n", "<!-- end -->"
_TITLES = {"mrpc": "MRPC", "stsb": "STS-B", "cola": "CoLA", "sst2": "SST-2", "demo": "Rotten Tomatoes"}
_HEADS = ("system", "score", "ms, one text", "model alone", "ms a text of 32", "MB")
_TIMES = (("batch 1, whole", 1), ("batch 1, model", 1), ("batch 32, whole", 32))

System = Sequence[Mapping[str, Any]]  # its seeds


def main() -> str:
    """The page with fresh tables."""
    before, _, rest = _PAGE.read_text(encoding="utf-8").partition(_OPENING)
    return before + _OPENING + tables() + _CLOSING + rest.partition(_CLOSING)[2]


def tables() -> str:
    """A table in Markdown for every task."""
    found = json.loads(_RAW.read_text(encoding="utf-8"))
    parts = []
    for task, title in _TITLES.items():
        systems: dict[str, list[Mapping[str, Any]]] = {}
        for key, one in found.items():
            if key.startswith(f"{task} | ") and "scores" in one:
                systems.setdefault(key.split(" | ")[1], []).append(one)
        if systems:
            parts.append(_table(title, systems))
    return "\n".join(parts)


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
