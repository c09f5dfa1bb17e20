"""Every model that a study has trained, and the front that was predicted before any student was."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nni_bertnas.artifacts import fingerprint
from nni_bertnas.errors import BertnasError, PhaseError
from nni_bertnas.report.page.kept import kept
from nni_bertnas.report.results import compared_students, other_finals, searched_students
from nni_bertnas.report.trained import frontier
from nni_bertnas.stages.cells import load_ranked, read_rankings
from nni_bertnas.stages.choice import Prices
from nni_bertnas.stages.run import Result, Run
from nni_bertnas.stages.students import StudentMaker
from nni_bertnas.stages.supernet import BAG, SEARCHED
from nni_bertnas.student.latency import LatencyTable, Part

LOOKS = {"teacher": "s1", SEARCHED: "s0", BAG: "s7", "front": "s2", "baseline": "s3"}  # class of page.css by kind


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model that was trained.

    Attributes:
        name: What it is.
        kind: A key of LOOKS.
        side: Scores and costs, as a result has them.
        speedup: Over the teacher that was measured beside it.
        predicted: Latency in ms and error by which it was chosen; None where it was not.
        result: That tells its architecture; None for models without cells.
    """

    name: str
    kind: str
    side: Mapping[str, Any]
    speedup: float
    predicted: tuple[float, float] | None = None
    result: Result | None = None


def trained_models(run: Run) -> list[Model]:
    """The teacher, every searched student with those that it was compared to, students along the front, baselines."""
    found: list[Model] = []
    for _, result in searched_students(run):
        if not found:
            found.append(Model(name="teacher", kind="teacher", side=result["teacher"], speedup=1.0))
        seed, kept_bag = f"seed {result['seed']}", result.get("kept") == BAG
        if not kept_bag:
            found.append(_student(f"searched, {seed}", SEARCHED, result))
        else:
            found.append(_beside(f"kept, without layers, {seed}", SEARCHED, result["teacher"], result["compared"][BAG]))
        found += [_beside(f"other finalist, {seed}", "front", result["teacher"], one) for one in other_finals(result)]
        if "compared" in result:
            name, other = ("with", SEARCHED) if kept_bag else ("without", BAG)
            found.append(_beside(f"{name} layers, {seed}", BAG, result["teacher"], result["compared"][other]))
    found += [_student(name, "front", result) for name, result in frontier(run)]
    for seed_number, students in compared_students(run).items():
        found += [
            _student(f"{name.replace('_', ' ')}, seed {seed_number}", "baseline", result)
            for name, result in students.items()
            if name != SEARCHED
        ]
    return found


def _student(name: str, kind: str, result: Result) -> Model:
    chosen = result.get("selection")
    return Model(
        name=name, kind=kind, side=result["student"], speedup=result["speedup"], result=result,
        predicted=(chosen["latency_ms"], chosen["score"]) if chosen else None,
    )  # fmt: skip


def _beside(name: str, kind: str, teacher: Mapping[str, Any], side: Mapping[str, Any]) -> Model:
    return Model(name=name, kind=kind, side=side, speedup=teacher["latency_ms"] / side["latency_ms"])


class _Known(LatencyTable):
    """The machine's latencies as they are: a report measures nothing."""

    def measure(self, parts: Sequence[Part], grid: Sequence[int]) -> None:
        if any(length not in self.lengths(part) for part in parts for length in grid):
            raise PhaseError("latencies of this machine and version are not there; measure them with: bertnas profile")


def predicted_front(run: Run) -> tuple[list[tuple[float, float]], str]:
    """Latency in ms and error of every combination of candidates that none other beats in both, the fastest first.

    Returns:
        The front, and in words why it is empty where it is.
    """
    try:
        table = run.latency_table(kind=_Known)
        rankings = [ranking["fingerprint"] for ranking in read_rankings(run)]
        mark = fingerprint(rankings, run.study.supernet.score, table.machine, table.threads)

        def make() -> list[tuple[float, float]]:
            prices = Prices.measure(StudentMaker(run, run.study.seed), load_ranked(run), table)
            return sorted((one.latency_ms, one.score) for one in prices.front("latency_ms"))

        return [(ms, error) for ms, error in kept(run.root, "front", mark, make)], ""
    except BertnasError as error:
        return [], str(error)
