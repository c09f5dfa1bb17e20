"""The sections that answer first: is this student worth keeping, and what stands beside it."""

from collections.abc import Iterator, Mapping

from nni_bertnas.report.page.charts import Mark, marks
from nni_bertnas.report.page.gather import Page
from nni_bertnas.report.page.intervals import interval_of
from nni_bertnas.report.page.markup import NONE, Markup, figures, join, paragraph, section, table, tag
from nni_bertnas.report.page.models import LOOKS, Model
from nni_bertnas.report.page.predictions import MOST_ROWS
from nni_bertnas.report.page.statistics import Interval
from nni_bertnas.report.page.verdict import Facts, headline, reasons
from nni_bertnas.stages.supernet import BAG

_BYTES = 1e6
# Limits of a budget that a result's own figure keeps or not, with the unit.
_BUDGET: Mapping[str, tuple[str, str]] = {
    "max_params": ("num_params", "parameters"),
    "max_flops": ("num_flops", "FLOPs"),
    "max_latency_ms": ("latency_ms", "ms"),
}


def spell_points(value: float) -> str:
    """A score of 0 to 1 in percent."""
    return figures(100 * value, 2)


def spell_interval(interval: Interval | None) -> str:
    """Its ends in percent; a dash where there is none."""
    return NONE if interval is None else f"{spell_points(interval.low)} to {spell_points(interval.high)}"


def answer(page: Page) -> Markup:
    """Section 1: the verdict, four figures, and scores and costs of both models."""
    split = page.final[0] if page.final else "dev"
    teacher, student, key = page.result["teacher"], page.result["student"], f"{split}_{page.metric}"
    compared, own = page.result.get("compared", {}), page.predictions.get(split)
    bare = compared.get(BAG) if page.result.get("kept") != BAG else None
    facts = Facts(
        metric=page.metric_title, split=split, teacher=teacher[key], student=student[key],
        difference=page.intervals[split].difference,
        rows=len(own.rows) if own else page.rows[split],
        speedup=page.result["speedup"], missed=tuple(_missed(page)),
        bare=(bare[key], bare["latency_ms"]) if bare else None,
        constant=own.constant(page.metric) if own else None,
    )  # fmt: skip
    tiles = [
        (f"{page.metric_title} on {split}", f"{spell_points(student[key])} %",
         f"teacher {spell_points(teacher[key])} %"),
        ("speed at batch 1", f"{page.result['speedup']:.1f} \N{MULTIPLICATION SIGN}",
         f"{student['latency_ms']:.2f} ms, teacher {teacher['latency_ms']:.2f} ms"),
        ("parameters", _parameters(student["num_params"]), f"teacher {_parameters(teacher['num_params'])}"),
        ("size on disk", _megabytes(page.sizes["student"]), f"teacher {_megabytes(page.sizes['teacher'])}"),
    ]  # fmt: skip
    shown = [tag("div", tag("dt", name), tag("dd", value), tag("dd", beside, class_="beside"))
             for name, value, beside in tiles]  # fmt: skip
    return section(
        "answer", "Keep this student?",
        tag("div", paragraph(headline(facts), kind="headline"), *map(paragraph, reasons(facts)), class_="verdict"),
        tag("dl", *shown, class_="tiles"),
        _scores(page),
        _costs(page),
        *(paragraph(text, kind="note warning") for text in page.notes),
    )  # fmt: skip


def _missed(page: Page) -> Iterator[str]:
    """The limits of the budget that the student that was measured does not keep."""
    student, limits = page.result["student"], page.budget
    for name, (key, unit) in _BUDGET.items():
        if name in limits and student[key] > limits[name]:
            yield f"{student[key]:,.6g} {unit}, at most {limits[name]:,.6g} were wanted"
    if "min_speedup" in limits and page.result["speedup"] < limits["min_speedup"]:
        yield f"{page.result['speedup']:.1f} times the speed, {limits['min_speedup']:g} were wanted"
    if "max_size_mb" in limits and page.sizes["student"] > limits["max_size_mb"] * _BYTES:
        yield f"{_megabytes(page.sizes['student'])}, at most {limits['max_size_mb']:g} were wanted"


def _megabytes(size: int) -> str:
    return NONE if not size else f"{size / _BYTES:.1f} MB" if size >= _BYTES / 10 else f"{size / 1e3:.1f} kB"


def _parameters(count: int) -> str:
    return f"{count / 1e6:.2f} M" if count >= 1e5 else f"{count:,}"


def _scores(page: Page) -> Markup:
    rows = []
    for split, own in page.intervals.items():
        values = [page.result[side][f"{split}_{page.metric}"] for side in ("teacher", "student")]
        cells = [
            (spell_points(value), spell_interval(one))
            for value, one in zip(values, (own.teacher, own.student), strict=True)
        ]
        cells.append((figures(100 * (values[1] - values[0]), 2, sign=True), spell_interval(own.difference)))
        rows.append([f"{split}, {page.rows[split]:,} rows", *(cell for pair in cells for cell in pair)])
    interval = "95 % interval"
    heads = ["", "teacher", interval, "student", interval, "difference", interval]
    parts = [
        f"Scores are {page.metric_title} in percent. The student's epoch was chosen by dev, so its score there is a "
        "little too good. Intervals of a share of rows are Wilson's; others, and those of differences, come from the "
        "same rows drawn anew a thousand times for both models."
    ]
    if any(len(own.rows) < own.total for own in page.predictions.values()):
        parts.append(f" Of large splits {MOST_ROWS:,} random rows were predicted for that.")
    if page.predictions_note:
        parts.append(f" The models could not predict: {page.predictions_note}")
    return join([table("Scores", heads, rows), paragraph(*parts, kind="note")])


def _costs(page: Page) -> Markup:
    teacher, student = page.result["teacher"], page.result["student"]
    lines = [
        ("parameters, M", "num_params", 1e6, 2),
        ("FLOPs at batch 1, M", "num_flops", 1e6, 1),
        ("memory of activations at batch 1, MB", "activation_bytes", 1e6, 2),
        ("latency at batch 1, ms", "latency_ms", 1.0, 2),
    ]
    rows = [
        [
            name,
            *(f"{side[key] / unit:,.{digits}f}" for side in (teacher, student)),
            f"1 / {teacher[key] / student[key]:.1f}",
        ]
        for name, key, unit, digits in lines
        if student.get(key)
    ]
    if page.sizes["student"] and page.sizes["teacher"]:
        ratio = page.sizes["teacher"] / page.sizes["student"]
        sizes = [f"{page.sizes[side] / _BYTES:.1f}" for side in ("teacher", "student")]
        rows.append(["saved weights, MB", *sizes, f"1 / {ratio:.1f}"])
    return table("Costs", ["", "teacher", "student", "student / teacher"], rows, class_="costs")


def trade_off(page: Page) -> Markup:
    """Section 2: every model's score against its latency, and what was predicted."""
    key = f"dev_{page.metric}"
    numbered = list(enumerate(page.models, 1))
    measured = [
        Mark(
            number=number, name=one.name, x=one.side["latency_ms"], y=100 * one.side[key], look=LOOKS[one.kind],
            low=None if (interval := _of(page, one, key)) is None else 100 * interval.low,
            high=None if interval is None else 100 * interval.high,
        )
        for number, one in numbered
    ]  # fmt: skip
    predicted = [
        Mark(number=number, name=one.name, x=one.predicted[0], y=one.predicted[1], look=LOOKS[one.kind])
        for number, one in numbered
        if one.predicted is not None
    ]
    charts = [marks("Measured: higher and further left is better", measured, "latency at batch 1, ms",
                    f"{page.metric_title} on dev, %")]  # fmt: skip
    if predicted or page.front:
        charts.append(
            marks("Predicted before training: lower and further left is better", predicted,
                  "predicted latency, ms", "error, sum over blocks", steps=page.front)
        )  # fmt: skip
    rows = [
        [join([tag("span", number, class_=f"key {LOOKS[one.kind]}"), " ", one.name]), spell_points(one.side[key]),
         spell_interval(_of(page, one, key)), f"{one.side['latency_ms']:.2f}", f"{one.speedup:.1f}",
         f"{one.side['num_params'] / 1e6:.2f}", f"{one.predicted[1]:.3f}" if one.predicted else NONE,
         f"{one.predicted[0]:.2f}" if one.predicted else NONE]
        for number, one in numbered
    ]  # fmt: skip
    heads = [
        "",
        f"dev {page.metric_title}, %",
        "95 % interval",
        "ms",
        "speed-up",
        "params, M",
        "predicted error",
        "predicted ms",
    ]
    note = (
        "Latencies have equal ratios equally far apart. "
        + ("The line is the front of all combinations of candidates, by predicted error and latency." if page.front
           else f"The front of all combinations is not shown: {page.front_note}.")
        + " Compare students by dev, and look at the final split once."
    )  # fmt: skip
    return section("trade-off", "Score against latency", tag("div", *charts, class_="pair"),
                   paragraph(note, kind="note"), table("All models that were trained", heads, rows))  # fmt: skip


def _of(page: Page, one: Model, key: str) -> Interval | None:
    return interval_of(page.metric, one.side[key], page.rows["dev"])
