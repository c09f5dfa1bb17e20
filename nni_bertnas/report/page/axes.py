"""What charts stand on: scales with round ticks, and the frame that they make."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from nni_bertnas.report.page.markup import Markup, figures, join, tag

_LEFT, _RIGHT, _TOP, _BOTTOM = 68.0, 14.0, 12.0, 44.0  # around the plotted area
_FINE = 6  # ticks at most
_STEPS = (1.0, 2.0, 5.0, 10.0)


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A scale.

    Attributes:
        title: With the unit.
        low: Least value.
        high: Greatest value.
        log: Whether equal ratios are equally long.
        whole: Whether only whole numbers stand on it.
    """

    title: str
    low: float
    high: float
    log: bool = False
    whole: bool = False

    @classmethod
    def over(
        cls, title: str, values: Sequence[float], *, log: bool = False, margin: float = 0.06, floor: float | None = None
    ) -> "Axis":
        """A scale that holds some values, with room around them.

        Args:
            title: With the unit.
            values: To be held; a scale of none goes from 0 to 1.
            log: See the class; the values must be above 0.
            margin: Share of the range that is added on either side.
            floor: Least value that may stand below the range.
        """
        low, high = (min(values), max(values)) if values else (0.0, 1.0)
        if log:
            room = max(math.log(high / low) * margin, 0.1)
            return cls(title=title, low=low * math.exp(-room), high=high * math.exp(room), log=True)
        room = (high - low) * margin or abs(high) * 0.1 or 0.1
        low = low - room if floor is None else max(low - room, floor)
        return cls(title=title, low=low, high=high + room)

    def share(self, value: float) -> float:
        """Where a value stands, 0 to 1."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """Round values that stand on it."""
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            for steps in ((1.0, 2.0, 5.0), (1.0, 3.0), (1.0,)):
                found = [s * 10.0**p for p in powers for s in steps if self.low <= s * 10.0**p <= self.high]
                if len(found) <= _FINE:
                    break
            if len(found) > 1:
                return found
        wanted = max((self.high - self.low) / (_FINE - 1), 1.0 if self.whole else 0.0)
        power = 10.0 ** math.floor(math.log10(wanted))
        step = next(one * power for one in _STEPS if one * power >= wanted * 0.999)
        return [
            number * step
            for number in range(math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9) + 1)
        ]

    def spell(self, tick: float) -> str:
        """A tick as text, all ticks with as many decimals."""
        if self.log:
            return f"{tick:g}"
        found = self.ticks()
        step = found[1] - found[0] if len(found) > 1 else 1.0
        digits = min(6, max(0, -math.floor(math.log10(step) + 1e-9)))
        return figures(tick, digits)


@dataclass(frozen=True, kw_only=True)
class Frame:
    """Two scales on paper, in the units of the SVG.

    Attributes:
        x: From left to right.
        y: Upwards.
        width: Of the whole.
        height: Likewise.
    """

    x: Axis
    y: Axis
    width: float = 360.0
    height: float = 240.0

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Where two values stand, y downwards as in SVG."""
        left, right, top, bottom = _LEFT, self.width - _RIGHT, _TOP, self.height - _BOTTOM
        return left + self.x.share(x) * (right - left), bottom - self.y.share(y) * (bottom - top)

    def draw(self) -> Markup:
        """Lines, ticks and titles."""
        left, right, top, bottom = _LEFT, self.width - _RIGHT, _TOP, self.height - _BOTTOM
        parts = []
        for tick in self.y.ticks():
            y = self.at(self.x.low, tick)[1]
            parts += [
                tag("line", x1=left, x2=right, y1=y, y2=y, class_="grid"),
                tag("text", self.y.spell(tick), x=left - 6, y=y + 4, text_anchor="end"),
            ]
        for tick in self.x.ticks():
            x = self.at(tick, self.y.low)[0]
            parts += [
                tag("line", x1=x, x2=x, y1=bottom, y2=bottom + 4, class_="axis"),
                tag("text", self.x.spell(tick), x=x, y=bottom + 17, text_anchor="middle"),
            ]
        middle = (top + bottom) / 2
        parts += [
            tag("line", x1=left, x2=right, y1=bottom, y2=bottom, class_="axis"),
            tag("text", self.x.title, x=(left + right) / 2, y=self.height - 8, text_anchor="middle", class_="title"),
            tag("text", self.y.title, x=12, y=middle, text_anchor="middle", class_="title",
                transform=f"rotate(-90 12 {middle:g})"),
        ]  # fmt: skip
        return join(parts)


def svg(width: float, height: float, label: str, *content: Markup, kind: str | None = None) -> Markup:
    """A picture with what a screen reader says of it."""
    return tag("svg", *content, viewBox=f"0 0 {width:g} {height:g}", role="img", aria_label=label, class_=kind,
               style=f"--width:{width:g}px")  # fmt: skip


def figure(caption: str, picture: Markup, legend: Sequence[tuple[str, str]] = (), kind: str | None = None) -> Markup:
    """A picture with its caption above and its legend below, each entry a class of style.css and a text."""
    entries = tag("ul", *(tag("li", text, class_=look) for look, text in legend), class_="legend") if legend else ""
    return tag("figure", tag("figcaption", caption), picture, entries, class_=kind)


def path(points: Sequence[tuple[float, float]], look: str) -> Markup:
    """A line through points; of one point alone a dot, which a line would not show."""
    if len(points) == 1:
        return tag("circle", cx=points[0][0], cy=points[0][1], r=3.5, class_=f"dot {look}")
    corners = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return tag("polyline", points=corners, class_=f"line {look}")
