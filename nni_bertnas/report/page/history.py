"""What training said epoch by epoch, as it lies in a study's folder: history/<stage>-<unit>.jsonl."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite
from pathlib import Path

from nni_bertnas.stages import STAGES
from nni_bertnas.tracking.histories import HISTORY, read_history

_ALWAYS = {"epoch", "seconds"}
_PROBABILITY = "probability"
Record = Mapping[str, float]


@dataclass(frozen=True)
class History:
    """The epochs of one unit of work.

    Attributes:
        stage: Name of the stage.
        unit: Name of the unit; empty where there is one alone.
        records: What every epoch said, in order; several trainings may follow each other.
    """

    stage: str
    unit: str
    records: Sequence[Record]

    def curve(self, key: str) -> list[list[tuple[float, float]]]:
        """A metric over the epochs from 1, in pieces: where an epoch's number does not rise a training began anew."""
        pieces: list[list[tuple[float, float]]] = [[]]
        for number, record in enumerate(self.records):
            if number and record["epoch"] <= self.records[number - 1]["epoch"] and pieces[-1]:
                pieces.append([])
            if key in record:
                pieces[-1].append((number + 1.0, record[key]))
        return [piece for piece in pieces if piece]

    @property
    def keys(self) -> list[str]:
        """All metrics but architecture weights, in the order in which they come."""
        return list(dict.fromkeys(key for record in self.records for key in record if "/" not in key))

    def probabilities(self) -> dict[str, dict[str, list[float]]]:
        """By decision and option the probability in every epoch of the last search; empty where none was by weights."""
        searched = [record for record in self.records if any(key.startswith(f"{_PROBABILITY}/") for key in record)]
        starts = [n for n, (a, b) in enumerate(pairwise(searched), 1) if b["epoch"] <= a["epoch"]]
        found: dict[str, dict[str, list[float]]] = {}
        for record in searched[starts[-1] if starts else 0 :]:
            for key, value in record.items():
                kind, _, rest = key.partition("/")
                label, _, option = rest.partition("/")
                if kind == _PROBABILITY and option:
                    found.setdefault(label, {}).setdefault(option, []).append(value)
        return found


def read_histories(root: Path, kept: Mapping[str, str] | None = None) -> list[History]:
    """All that lie in a study's folder, in the order of its stages.

    Of a unit that trains others inside, such as finalists, the epochs of these parts are left out.

    Args:
        root: The study's folder.
        kept: By a record's name the part of the unit that was kept instead, whose epochs stand for it.
    """
    order, found = list(STAGES), []
    for path in (root / HISTORY).glob("*.jsonl"):
        stage, _, unit = path.stem.partition("-")
        records = [_numbers(one) for one in read_history(root / HISTORY, path.stem)]
        if part := (kept or {}).get(path.stem):
            records = [_of(part, one) for one in records]
        records = [one for one in records if "epoch" in one and any("/" not in key for key in one.keys() - _ALWAYS)]
        if records and stage in order:
            found.append(History(stage, unit, records))
    return sorted(found, key=lambda one: (order.index(one.stage), one.unit))


def _of(part: str, record: Record) -> Record:
    """What an epoch said of a part alone."""
    before = f"{part}/"
    return {
        key.removeprefix(before): value for key, value in record.items() if key in _ALWAYS or key.startswith(before)
    }


def _numbers(record: Mapping[str, object]) -> Record:
    """Without what was no finite number."""
    return {key: float(value) for key, value in record.items() if isinstance(value, int | float) and isfinite(value)}
