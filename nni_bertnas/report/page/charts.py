"""The charts of the page, each a figure of SVG; colours are classes of page.css, so that they follow the scheme."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nni_bertnas.report.page.axes import Axis, Frame, figure, path, svg
from nni_bertnas.report.page.markup import Markup, join, tag
from nni_bertnas.report.page.statistics import Bin

Point = tuple[float, float]
_COLOURS = 8  # that style.css has; more series share the last
_DOTS = 1500  # that a scatter draws
_NAME = 22  # letters of a name beside a heat map


def colour(number: int) -> str:
    """The class of a series by its number."""
    return f"s{min(number, _COLOURS - 1)}"


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A point of a chart with what is known of it.

    Attributes:
        number: Written beside it, as in the table below.
        name: What it is.
        x: In the chart's unit.
        y: Likewise.
        low: Lower end of an interval; None where there is none.
        high: Upper end.
        look: A class of page.css.
    """

    number: int
    name: str
    x: float
    y: float
    low: float | None = None
    high: float | None = None
    look: str = "s0"


def lines(caption: str, series: Mapping[str, Sequence[Sequence[Point]]], x_title: str, y_title: str) -> Markup:
    """Curves over epochs, each in pieces: a training that begins anew is not joined to the one before.

    Args:
        caption: Above the chart.
        series: By name the pieces of a curve.
        x_title: With the unit.
        y_title: Likewise.
    """
    every = [point for pieces in series.values() for piece in pieces for point in piece]
    steps = [x for x, _ in every]
    x = Axis(title=x_title, low=min(steps) - 0.15, high=max(max(steps), min(steps) + 1) + 0.15, whole=True)
    frame = Frame(x=x, y=Axis.over(y_title, [y for _, y in every]))
    parts = []
    for number, (name, pieces) in enumerate(series.items()):
        drawn = [path([frame.at(*point) for point in piece], colour(number)) for piece in pieces]
        parts.append(tag("g", tag("title", f"{name}, last {pieces[-1][-1][1]:.4g}"), *drawn))
    legend = [(colour(number), name) for number, name in enumerate(series)] if len(series) > 1 else []
    return figure(caption, svg(frame.width, frame.height, caption, frame.draw(), *parts), legend)


def marks(
    caption: str, found: Sequence[Mark], x_title: str, y_title: str, *, steps: Sequence[Point] = (), log: bool = True
) -> Markup:
    """Numbered points with their intervals, and a line of steps where there is one.

    Args:
        caption: Above the chart.
        found: The points.
        x_title: With the unit.
        y_title: Likewise.
        steps: Corners of a front, from left to right.
        log: Whether equal ratios of x are equally long.
    """
    heights = [one for mark in found for one in (mark.y, mark.low, mark.high) if one is not None]
    x = Axis.over(x_title, [*(mark.x for mark in found), *(x for x, _ in steps)], log=log)
    frame = Frame(x=x, y=Axis.over(y_title, [*heights, *(y for _, y in steps)]), width=400, height=290)
    parts = []
    if steps:
        corners = [steps[0]]
        for (_, before), (right, y) in itertools.pairwise(steps):
            corners += [(right, before), (right, y)]
        parts.append(path([frame.at(*corner) for corner in corners], "front"))
        parts += [tag("circle", cx=a, cy=b, r=2.5, class_="dot front") for a, b in (frame.at(*one) for one in steps)]
    labels = _apart([frame.at(mark.x, mark.y) for mark in found])
    for mark, label in zip(found, labels, strict=True):
        left, top = frame.at(mark.x, mark.y)
        said = f"{mark.number} {mark.name}: {mark.y:.2f} at {mark.x:.2f}"
        bar: Markup | str = ""
        if mark.low is not None and mark.high is not None:
            said += f", 95 % interval {mark.low:.2f} to {mark.high:.2f}"
            bar = tag("line", x1=left, x2=left, y1=frame.at(mark.x, mark.low)[1], y2=frame.at(mark.x, mark.high)[1],
                      class_=f"whisker {mark.look}")  # fmt: skip
        dot = tag("circle", cx=left, cy=top, r=5, class_=f"dot {mark.look}")
        name = tag("text", mark.number, x=label[0], y=label[1], class_="number")
        parts.append(tag("g", tag("title", said), bar, dot, name))
    return figure(caption, svg(frame.width, frame.height, caption, frame.draw(), *parts))


def _apart(dots: Sequence[Point]) -> list[Point]:
    """Where the dots' numbers stand: to the right above, or where the fewest others are."""
    placed: list[Point] = []
    for x, y in dots:
        options = [(x + 8, y - 6), (x + 8, y + 14), (x - 16, y - 6), (x - 16, y + 14)]

        def crowd(option: Point) -> int:
            others = [*dots, *((a + 4, b - 4) for a, b in placed)]
            return sum(abs(a - option[0] - 4) < 11 and abs(b - option[1] + 4) < 10 for a, b in others)

        placed.append(min(options, key=crowd))
    return placed


def heat_map(caption: str, rows: Mapping[str, Sequence[float]], first: int, last: int) -> Markup:
    """One row per name, columns from left to right in time, the stronger the greater; the last value beside each row.

    Args:
        caption: Above the map.
        rows: Values 0 to 1 by name, all equally many.
        first: What the first column is, an epoch.
        last: Likewise.
    """
    count = len(next(iter(rows.values())))
    height, left, right, width = 18.0, 146.0, 36.0, 340.0
    cell = (width - left - right) / count
    most = max(max(values) for values in rows.values()) or 1.0
    parts = []
    for number, (name, values) in enumerate(rows.items()):
        top = number * height
        cells = [
            tag("rect", x=left + column * cell, y=top + 1, width=cell + 0.3, height=height - 2,
                fill_opacity=f"{0.05 + 0.95 * value / most:.2f}")
            for column, value in enumerate(values)
        ]  # fmt: skip
        parts += [
            tag(
                "text",
                name if len(name) <= _NAME else f"{name[: _NAME - 1]}…",
                x=left - 6,
                y=top + 13,
                text_anchor="end",
            ),
            tag("g", tag("title", f"{name}: {values[0]:.3f} to {values[-1]:.3f}"), *cells, class_="heat"),
            tag("text", f"{values[-1]:.2f}", x=width - right + 6, y=top + 13),
        ]
    bottom = len(rows) * height
    parts += [
        tag("text", first, x=left, y=bottom + 14),
        tag("text", "epoch", x=left + (width - left - right) / 2, y=bottom + 14, text_anchor="middle", class_="title"),
        tag("text", last, x=width - right, y=bottom + 14, text_anchor="end"),
    ]
    return figure(caption, svg(width, bottom + 22, caption, *parts))


def bars(caption: str, values: Mapping[str, float], spelt: Mapping[str, str]) -> Markup:
    """Horizontal bars with their values as texts.

    Args:
        caption: Above the chart.
        values: By name.
        spelt: The same as texts.
    """
    height, left, right, width = 26.0, 76.0, 104.0, 400.0
    most = max(values.values()) or 1.0
    parts = []
    for number, (name, value) in enumerate(values.items()):
        top, length = number * height, max(1.5, (width - left - right) * value / most)
        parts += [
            tag("text", name, x=left - 8, y=top + 17, text_anchor="end"),
            tag("rect", x=left, y=top + 4, width=length, height=height - 9, rx=2, class_="bar"),
            tag("text", spelt[name], x=left + length + 8, y=top + 17),
        ]
    return figure(caption, svg(width, len(values) * height, caption, *parts))


def reliability(caption: str, sides: Mapping[str, Sequence[Bin]]) -> Markup:
    """Confidence against how often it was right; of a calibrated model both are the same, on the dashed line.

    Args:
        caption: Above the chart.
        sides: Bins by the model's name.
    """
    x, y = (Axis(title=title, low=0.0, high=1.0) for title in ("confidence", "share that is right"))
    frame = Frame(x=x, y=y, height=320)
    parts = [path([frame.at(0, 0), frame.at(1, 1)], "even")]
    most = max((bin.count for bins in sides.values() for bin in bins), default=1)
    for number, (name, bins) in enumerate(sides.items()):
        corners = [frame.at(bin.confidence, bin.share) for bin in bins]
        parts.append(path(corners, colour(number)))
        for bin, (left, top) in zip(bins, corners, strict=True):
            said = f"{name}: {bin.count} rows of confidence {bin.confidence:.2f}, {bin.share:.2f} right"
            radius = 2.5 + 5 * float(np.sqrt(bin.count / most))
            parts.append(tag("circle", tag("title", said), cx=left, cy=top, r=radius, class_=f"dot {colour(number)}"))
    legend = [(colour(number), name) for number, name in enumerate(sides)] + [("even", "calibrated")]
    return figure(caption, svg(frame.width, frame.height, caption, frame.draw(), join(parts)), legend)


def scatter(caption: str, targets: np.ndarray, predictions: np.ndarray, look: str) -> Markup:
    """Predicted scores against those of the data, both `(num_rows,)`; on the dashed line they are the same."""
    both = [float(value) for value in (*targets, *predictions)]
    frame = Frame(x=Axis.over("score in the data", both), y=Axis.over("predicted score", both), height=330)
    low, high = frame.x.low, frame.x.high
    shown = np.linspace(0, len(targets) - 1, min(len(targets), _DOTS)).round().astype(int)
    dots = [frame.at(float(targets[row]), float(predictions[row])) for row in shown]
    parts = [tag("circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r=2, class_=f"cloud {look}") for x, y in dots]
    line = path([frame.at(low, low), frame.at(high, high)], "even")
    return figure(caption, svg(frame.width, frame.height, caption, frame.draw(), line, *parts))
