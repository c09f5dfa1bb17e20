"""Architectures as SVG: what stands in place of which block, from left to right, block below block."""

import itertools
from collections.abc import Sequence

from nni_bertnas.report.drawing import Arrow, Box, Diagram, diagram_of, place, route
from nni_bertnas.report.page.axes import svg
from nni_bertnas.report.page.markup import Markup, join, tag
from nni_bertnas.stages.run import Result
from search_space.cells import Architecture, Sequential, find_space, spell_choice

_PLAIN, _BOLD = 6.3, 6.9  # width of a letter of 11.5 px, on average; boxes get the room that the widest fonts need
_NAME, _GAP = 62.0, 22.0  # of a block's name on the left, between rows


def student_picture(space: str, result: Result, name: str) -> Markup:
    """A student from its embeddings to its head.

    Args:
        space: Of its cells.
        result: Of the student.
        name: For a screen reader.
    """
    shape = result.get("shape", {})
    ends = [_one(f"embeddings{', texts apart' if shape.get('encoding') == 'separate' else ''}", plain=True)]
    cells = [
        _cell(space, depth, architecture)
        for depth, architecture in zip(result["depths"], result["architecture"], strict=True)
    ]
    head = _one(f"head: {shape.get('head', 'pool')}", plain=True)
    names = ["", *(f"block {number}" for number in range(len(cells))), ""]
    return _stack(names, [*ends, *cells, head], name)


def _one(text: str, *, plain: bool = False) -> Diagram:
    return Diagram(boxes=[Box(title=text, plain=plain)], arrows=[])


def _cell(space: str, depth: int, architecture: Architecture) -> Diagram:
    if not depth:
        return _one("no layer", plain=True)
    try:
        kind = find_space(space)
        if not issubclass(kind, Sequential):
            return diagram_of(space, depth, architecture)
    except (ImportError, AttributeError, ValueError, KeyError):  # a user's space that is not there any more
        texts = [f"{label}: {spell_choice(choice)}" for label, choice in architecture.items()]
    else:
        texts = [spell_choice(choice) for choice in architecture.values()]
    boxes = [Box(title=text, column=number) for number, text in enumerate(texts)]
    return Diagram(boxes=boxes, arrows=[Arrow(*pair) for pair in itertools.pairwise(boxes)])


def _measure(style: str, text: str) -> float:
    return len(text) * (_BOLD if style == "title" else _PLAIN)


def _stack(names: Sequence[str], diagrams: Sequence[Diagram], label: str) -> Markup:
    """Diagrams below each other, each with its name on the left, joined by arrows."""
    parts: list[Markup] = []
    top, width = 2.0, 0.0
    before: tuple[float, float] | None = None  # middle of what stands above, and its lower edge
    for name, diagram in zip(names, diagrams, strict=True):
        own_width, height = place(diagram, _measure)
        highest = max(box.top for box in diagram.boxes)
        lowest = min(box.bottom for box in diagram.boxes)
        around = any(arrow.side != "straight" for arrow in diagram.arrows)
        above, height = (0.0, height) if around else (highest, highest - lowest)
        parts.append(_drawn(diagram, top + above))
        if name:
            parts.append(tag("text", name, x=0, y=top + height / 2 + 4, class_="name"))
        first, last = diagram.boxes[0], diagram.boxes[-1]
        edge = top + above - first.top
        if before is not None:
            parts.append(
                _arrow([before, (before[0], top - _GAP / 2), (_NAME + 16, top - _GAP / 2), (_NAME + 16, edge)])
            )
        before = (_NAME + (last.left + last.right) / 2 if last.column else _NAME + 16, top + above - last.bottom)
        top, width = top + height + _GAP, max(width, _NAME + own_width)
    return svg(width + 4, top - _GAP + 2, label, *parts, kind="architecture")


def _drawn(diagram: Diagram, top: float) -> Markup:
    parts = []
    for arrow in diagram.arrows:
        parts.append(_arrow([(x + _NAME, top - y) for x, y in route(diagram, arrow)], arrow.kind))
    for box in diagram.boxes:
        look = "box plain" if box.plain else "box"
        parts.append(tag("rect", x=box.left + _NAME, y=top - box.top, width=box.width, height=box.height, rx=4,
                         class_=look))  # fmt: skip
        parts += [
            tag("text", text, x=box.left + _NAME + 8, y=top - box.top + 8 + 12.5 * (number + 0.5) + 4, class_=style)
            for number, (style, text) in enumerate(box.lines())
        ]
    return join(parts)


def _arrow(corners: Sequence[tuple[float, float]], kind: str = "fixed") -> Markup:
    """A line with a head, drawn as a triangle, as markers cannot take the line's colour everywhere."""
    (x0, y0), (x1, y1) = corners[-2:]
    length = max(1e-6, ((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5)
    ux, uy = (x1 - x0) / length, (y1 - y0) / length
    back = (x1 - 6 * ux, y1 - 6 * uy)
    head = [(x1, y1), (back[0] - 3 * uy, back[1] + 3 * ux), (back[0] + 3 * uy, back[1] - 3 * ux)]
    spelt = [" ".join(f"{x:.1f},{y:.1f}" for x, y in points) for points in ([*corners[:-1], back], head)]
    look = f"arrow {kind}"
    return join([tag("polyline", points=spelt[0], class_=look), tag("polygon", points=spelt[1], class_=look)])
