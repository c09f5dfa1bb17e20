"""Whether to keep a student, in plain words."""

from dataclasses import dataclass

from nni_bertnas.report.page.markup import figures
from nni_bertnas.report.page.statistics import Interval

_WORTH_SPEED, _DEAR = 0.95, 0.85  # shares of the teacher's score that are kept, below which it is said otherwise
_FASTER = 1.1  # below which latencies that were measured apart differ by chance, too


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the verdict is of.

    Attributes:
        metric: As people read it.
        split: That the scores are of.
        teacher: Score, 0 to 1.
        student: Likewise.
        difference: Interval of student less teacher; None where it is not known.
        rows: That the interval is of.
        speedup: Over the teacher.
        missed: Limits of the budget that are not kept, in words.
        bare: Score and latency in ms of the student without layers on the same split; None where there is none.
        constant: Score of the best one answer to all rows; None where rows are not there.
    """

    metric: str
    split: str
    teacher: float
    student: float
    difference: Interval | None
    rows: int
    speedup: float
    missed: tuple[str, ...] = ()
    bare: tuple[float, float] | None = None
    constant: float | None = None


def headline(facts: Facts) -> str:
    """The answer in one sentence."""
    lost, share = 100 * (facts.teacher - facts.student), facts.student / facts.teacher if facts.teacher > 0 else 1.0
    faster = f"{facts.speedup:.1f} times the speed"
    price = f"{lost:.1f} points of {facts.metric}"
    if facts.constant is not None and facts.teacher <= facts.constant:
        return "Do not keep it yet: its teacher is no better than one answer to all rows; train the teacher better."
    if facts.speedup < _FASTER:
        return f"Do not keep it: it has {faster} of the teacher, which is no gain."
    if lost <= 0:
        return f"Keep it: no worse than the teacher, at {faster}."
    if facts.difference is not None and facts.difference.high >= 0:
        if share >= _WORTH_SPEED:
            return f"Keep it: {faster} for {price}, a loss that these rows cannot tell from chance."
        return f"These rows cannot say: it has {faster}, and loses {price} by chance or not."
    if share >= _WORTH_SPEED:
        return f"Keep it where {faster} is worth {price}."
    if share >= _DEAR:
        return f"Keep it only where speed is needed: {faster} cost {price}."
    return f"Do not keep it as it is: it loses {price}."


def reasons(facts: Facts) -> list[str]:
    """What else speaks for and against it, a sentence each."""
    found = []
    if facts.difference is not None:
        low, high = (100 * value for value in (facts.difference.low, facts.difference.high))
        if high < 0:
            found.append(f"The loss is real: with 95 % confidence between {-high:.1f} and {-low:.1f} points.")
        elif low > 0:
            found.append(f"The gain is real: with 95 % confidence between {low:.1f} and {high:.1f} points.")
        else:
            found.append(
                f"The {facts.rows:,} rows of {facts.split} are too few to tell the two apart: the difference lies "
                f"between {_signed(low)} and {_signed(high)} points with 95 % confidence."
            )
    if facts.constant is not None and min(facts.teacher, facts.student) <= facts.constant:
        found.append(f"One answer to all rows would score {100 * facts.constant:.1f} %.")
    found += [f"The budget is not kept: {text}." for text in facts.missed]
    if facts.bare is not None:
        gain = 100 * (facts.student - facts.bare[0])
        found.append(
            f"Without any layer it would score {100 * facts.bare[0]:.1f} % in {facts.bare[1]:.2f} ms: the layers are "
            f"worth {_signed(gain)} points."
        )
    return found


def _signed(value: float) -> str:
    return figures(value, 1, sign=True)
