"""Stage frontier: students along the front of predicted score and latency, one NNI trial each.

Nothing is searched for them: their cells are the block phase's. Which they are is decided once, by the first trial, and
kept beside their folders, so that all trials have one front.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from nni_bertnas.artifacts import fingerprint, write_whole
from nni_bertnas.config import BudgetSettings, to_dict
from nni_bertnas.errors import ConfigError
from nni_bertnas.stages.cells import load_ranked, read_rankings
from nni_bertnas.stages.choice import Prices
from nni_bertnas.stages.locks import one_at_a_time
from nni_bertnas.stages.run import Result, Run, Unit
from nni_bertnas.stages.stage import Stage, load
from nni_bertnas.stages.students import STUDENT, StudentMaker, describe, metrics
from nni_bertnas.student.candidates import Candidate
from nni_bertnas.student.selection import Combination, other_than
from nni_bertnas.tracking.tracker import Tracker

_POINTS = "points.json"


def _fingerprint(run: Run, unit: Unit) -> str:
    trained = load("supernet").fingerprint(run, {"seed": unit["seed"]})
    return fingerprint(trained, run.study.supernet.students, unit["point"])


def _check(run: Run, unit: Unit) -> None:
    if not 0 <= unit["point"] < run.study.supernet.students:
        raise ConfigError(f"point must be 0 to {run.study.supernet.students - 1}, got {unit['point']}")


def _make(run: Run, unit: Unit, folder: Path, tracker: Tracker) -> Result:
    maker, blocks = StudentMaker(run, unit["seed"]), load_ranked(run)
    point = _points(run, maker, blocks)[unit["point"]]
    chosen = [candidates[index] for candidates, index in zip(blocks, point.choice, strict=True)]
    return {"selection": asdict(point), **maker.train(chosen, f"point_{unit['point']}", folder, tracker)}


def _points(run: Run, maker: StudentMaker, blocks: Sequence[Sequence[Candidate]]) -> list[Combination]:
    supernet = run.study.supernet
    rankings = [ranking["fingerprint"] for ranking in read_rankings(run)]
    mark = fingerprint(rankings, supernet.score, to_dict(supernet.budget), supernet.students)
    path = run.folder("frontier") / _POINTS
    with one_at_a_time(run.root, "frontier-points"):
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
            if kept["fingerprint"] == mark:
                return [Combination(**{**one, "choice": tuple(one["choice"])}) for one in kept["points"]]
        except (OSError, ValueError, KeyError, TypeError):
            pass  # not there, or half there: it is made anew
        found = along_front(Prices.for_budget(maker, blocks), supernet.budget, supernet.students)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps({"fingerprint": mark, "points": [asdict(one) for one in found]}, indent=1))
    return found


def along_front(prices: Prices, budget: BudgetSettings, count: int) -> list[Combination]:
    """So many combinations within a budget, spread over the front of score and latency, the slowest first.

    Where the front has fewer, the best by score of all others are taken besides.

    Raises:
        ConfigError: There are fewer altogether.
    """
    limits = prices.limits(budget)
    front = [
        one for one in prices.front("latency_ms") if all(getattr(one, name) <= most for name, most in limits.items())
    ]
    found: list[Combination] = []
    if front:
        slow, fast = (math.log(one.latency_ms) for one in (front[0], front[-1]))
        wanted = [slow + (fast - slow) * number / max(1, count - 1) for number in range(count)]
        for place in wanted:
            nearest = min(
                (one for one in front if one not in found),
                key=lambda one: abs(math.log(one.latency_ms) - place),
                default=None,
            )
            found += [] if nearest is None else [nearest]
    while len(found) < count:
        other = prices.best(budget, [other_than(one.choice) for one in found])
        if other is None:
            raise ConfigError(
                f"supernet.students: there are {len(found)} students within the budget; ask for as many, or raise "
                "block.candidates"
            )
        found.append(other)
    return sorted(found, key=lambda one: -one.latency_ms)


STAGE = Stage(
    name="frontier",
    units=lambda run: [{"seed": run.study.seed, "point": number} for number in range(run.study.supernet.students)],
    fingerprint=_fingerprint,
    make=_make,
    describe=describe,
    parameters={"seed": int, "point": int},
    needs=lambda run, unit: load("supernet").needs(run, {"seed": unit["seed"]}),
    check=_check,
    metrics=metrics,
    model=STUDENT,
    optimize="maximize",
    devices="supernet",
    alone=True,
    spares=lambda run, done: len(done) > 0,
    missing="set supernet.students to how many you want, e.g. 5",
)
