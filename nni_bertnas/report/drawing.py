"""Spaces and architectures as pictures: boxes from left to right, what is always connected solid, what may be dashed.

Lengths are points (1/72 inch), y points upwards.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nni_bertnas.errors import ConfigError
from search_space.cells import (
    AdaBERT,
    Architecture,
    Body,
    Choice,
    Sequential,
    TextNAS,
    find_space,
    spell_choice,
)
from search_space.listing import Space

_SIZE, _LINE, _PAD = 9.0, 12.5, 8.0  # of text, of a line of text, inside a box
_COLUMN_GAP, _ROW_GAP, _SLOT_GAP, _LANE, _MARGIN = 44.0, 28.0, 24.0, 9.0, 16.0
_COLOURS = {"fixed": "#333333", "input": "#1f6fb4", "skip": "#c8641e", "edge": "#1f6fb4"}
_MEANINGS = {
    ("fixed", False): "connected",
    ("input", True): "one of these is the input",
    ("skip", True): "added or not",
    ("skip", False): "added",
    ("edge", True): "kept or not",
}
ENDINGS = (".png", ".svg")


@dataclass(kw_only=True, eq=False)
class Box:
    """One box.

    Attributes:
        title: First line.
        parts: What to read in it: a heading, which may be empty, with lines.
        column: From the left.
        row: From the top; only boxes of one row are connected.
        slot: In its column, from the top.
        plain: Holds no decision.
    """

    title: str
    parts: list[tuple[str, list[str]]] = field(default_factory=list)
    column: int = 0
    row: int = 0
    slot: int = 0
    plain: bool = False
    left: float = 0.0
    bottom: float = 0.0
    width: float = 0.0
    height: float = 0.0

    @property
    def right(self) -> float:
        """Right edge."""
        return self.left + self.width

    @property
    def top(self) -> float:
        """Upper edge."""
        return self.bottom + self.height

    def lines(self) -> list[tuple[str, str]]:
        """Style and text of every line."""
        found = [("title", self.title)]
        for heading, lines in self.parts:
            found += [("heading", heading)] if heading else []
            found += [("option", line) for line in lines]
        return found


@dataclass(frozen=True, eq=False)
class Arrow:
    """A connection: straight between neighbouring columns, else around the boxes on one side."""

    source: Box
    target: Box
    kind: str = "fixed"
    open: bool = False  # dashed: the connection itself is searched
    side: str = "straight"  # or above, below


@dataclass(frozen=True, kw_only=True)
class Diagram:
    """What is drawn."""

    boxes: list[Box]
    arrows: list[Arrow]


def draw_space(space: Space, path: Path) -> None:
    """Draw every decision of a space with its options.

    Args:
        space: Of one depth.
        path: Ends in .png or .svg.

    Raises:
        ConfigError: The ending is another, matplotlib is missing, or the file cannot be written.
    """
    count = space.count()
    title = f"{space.name}, depth {space.depth}: {count:,} architecture{'s' if count > 1 else ''}"
    _draw(_diagram(space.kind, space.depth, space.choices, None), title, path)


def draw_architecture(space: str, depth: int, architecture: Architecture, path: Path) -> None:
    """Draw one architecture: the chosen operations and the kept connections.

    Args:
        space: A key of `search_space.cells.SPACES`, or a dotted name.
        depth: Of the cell.
        architecture: Its decisions.
        path: Ends in .png or .svg.

    Raises:
        ConfigError: The ending is another, matplotlib is missing, or the file cannot be written.
    """
    _draw(diagram_of(space, depth, architecture), f"{space}, depth {depth}", path)


def diagram_of(space: str, depth: int, architecture: Architecture) -> Diagram:
    """What :func:`draw_architecture` draws."""
    kind = find_space(space)
    chosen = kind.canonical(architecture)
    return _diagram(kind, depth, {label: [one] for label, one in chosen.items()}, chosen)


# --- what is connected ------------------------------------------------------------------------------------------

Options = Mapping[str, Sequence[Choice]]


def _diagram(kind: type[Body], depth: int, choices: Options, chosen: Architecture | None) -> Diagram:
    known: dict[type[Body], Callable[..., Diagram]] = {TextNAS: _textnas, AdaBERT: _adabert, Sequential: _chain}
    for base, make in known.items():
        # A subclass that connects otherwise is drawn like any other body of a user's.
        if issubclass(kind, base) and kind.__init__ is base.__init__ and kind.forward is base.forward:
            return make(kind, depth, choices, chosen)
    return _chain(kind, depth, choices, chosen)


def _spell(options: Sequence[Choice]) -> list[str]:
    return [spell_choice(one) for one in options]


def _heading(name: str, numbers: Sequence[int]) -> str:
    return ", ".join(f"{name}_{n}" for n in numbers) + (", each one of" if len(numbers) > 1 else ", one of")


def _chain(kind: type[Body], depth: int, choices: Options, chosen: Architecture | None) -> Diagram:
    boxes = [Box(title="cell input", plain=True)]
    boxes += [Box(title=label, parts=[("", _spell(options))]) for label, options in choices.items()]
    boxes.append(Box(title="cell output", plain=True))
    for number, box in enumerate(boxes):
        box.column = number
    return Diagram(boxes=boxes, arrows=[Arrow(*pair) for pair in itertools.pairwise(boxes)])


def _textnas(kind: type[TextNAS], depth: int, choices: Options, chosen: Architecture | None) -> Diagram:
    outputs, arrows = [Box(title="cell input", plain=True)], []
    for number in range(depth):
        label = f"layer_{number}"
        box = Box(title=label, column=number + 1, parts=[("", _spell(choices[label]))])
        first = max(0, len(outputs) - kind.LAST)
        picks = outputs[first:]
        if f"{label}_input" in choices:
            if chosen is None:
                box.parts.append(("input, one of", [f"{n}: {source.title}" for n, source in enumerate(picks)]))
            else:
                picks = [picks[int(choice)] for choice in chosen[f"{label}_input"]]
        searched = len(picks) > 1
        for source in picks:
            near = source.column == box.column - 1
            arrows.append(
                Arrow(source, box, "input" if searched else "fixed", searched, "straight" if near else "above")
            )
        skips = [n for n in range(number) if chosen is None or chosen[f"{label}_skip_{n}"] == "identity"]
        if chosen is None and skips:
            box.parts.append((_heading("skip", skips), _spell(choices[f"{label}_skip_{skips[0]}"])))
        arrows += [Arrow(outputs[n], box, "skip", chosen is None, "below") for n in skips]
        outputs.append(box)
    output = Box(
        title="cell output", plain=True, column=depth + 1, parts=[("", ["learned weighted", "sum of all layers"])]
    )
    arrows += [Arrow(box, output, side="straight" if box is outputs[-1] else "above") for box in outputs[1:]]
    return Diagram(boxes=[*outputs, output], arrows=arrows)


def _adabert(kind: type[AdaBERT], depth: int, choices: Options, chosen: Architecture | None) -> Diagram:
    boxes, arrows = [], []
    before, last = "cell input", "cell input"
    for graph in range(depth):
        name = "cell output" if graph == depth - 1 else f"output of graph_{graph}"
        inputs = ["first sentence", "second sentence"] if graph == 0 else [before, last]
        states = [Box(title=f"{n}: {one}", row=graph, slot=n, plain=True) for n, one in enumerate(inputs)]
        if graph == 0:
            for box in states:
                box.parts.append(("", ["of a pair; else cell input"]))
        nodes = []
        for number in range(kind.NODES):
            label = f"graph_{graph}_node_{number}"
            box = Box(title=f"{number + 2}: {label}", column=number + 1, row=graph)
            edges = [n for n in range(len(states)) if f"{label}_edge_{n}" in choices]
            searched = chosen is None and len(edges) > kind.EDGES
            if searched:
                box.parts.append(("inputs, one of", _spell(choices[f"{label}_inputs"])))
            if chosen is None:
                box.parts.append((_heading("edge", edges), _spell(choices[f"{label}_edge_{edges[0]}"])))
            else:
                box.parts.append(("", [f"edge_{n}: {chosen[f'{label}_edge_{n}']}" for n in edges]))
            for n in edges:
                near = states[n].column == box.column - 1
                side = "straight" if near else "below" if n == 1 else "above"
                arrows.append(Arrow(states[n], box, "edge" if searched else "fixed", searched, side))
            states.append(box)
            nodes.append(box)
        parts = [("", [f"{last} +", "learned weighted", "sum of the nodes"])]
        output = Box(title=name, column=kind.NODES + 1, row=graph, plain=True, parts=parts)
        arrows += [Arrow(node, output, side="straight" if node is nodes[-1] else "below") for node in nodes]
        boxes += [*states, output]
        before, last = last, name
    return Diagram(boxes=boxes, arrows=arrows)


# --- where it stands --------------------------------------------------------------------------------------------


def place(diagram: Diagram, measure: Callable[[str, str], float]) -> tuple[float, float]:
    """Set every box's place, the first row uppermost; gives the width and height of all."""
    for box in diagram.boxes:
        box.width = max(measure(style, text) for style, text in box.lines()) + 2 * _PAD
        box.height = len(box.lines()) * _LINE + 2 * _PAD
        # Every connection around the boxes has a place of its own on the edge.
        ports = max(sum(box in (arrow.source, arrow.target) for arrow in _around(diagram, box.row, side))
                    for side in ("above", "below"))  # fmt: skip
        box.width = max(box.width, (ports + 2) * _LANE)
    left = 0.0
    for column in range(1 + max(box.column for box in diagram.boxes)):
        stack = [box for box in diagram.boxes if box.column == column]
        for box in stack:
            box.left, box.width = left, max(one.width for one in stack)
        left += max(box.width for box in stack) + _COLUMN_GAP
    y = 0.0
    for row in range(1 + max(box.row for box in diagram.boxes)):
        boxes = [box for box in diagram.boxes if box.row == row]
        columns = [
            sorted((b for b in boxes if b.column == column), key=lambda b: b.slot)
            for column in {b.column for b in boxes}
        ]
        heights = [sum(b.height for b in stack) + _SLOT_GAP * (len(stack) - 1) for stack in columns]
        y -= (len(_around(diagram, row, "above")) + 1) * _LANE
        for stack, height in zip(columns, heights, strict=True):
            top = y - (max(heights) - height) / 2
            for box in stack:
                box.bottom = top - box.height
                top = box.bottom - _SLOT_GAP
        y -= max(heights) + (len(_around(diagram, row, "below")) + 1) * _LANE + _ROW_GAP
    return left - _COLUMN_GAP, -y - _ROW_GAP


def _around(diagram: Diagram, row: int, side: str) -> list[Arrow]:
    """The connections of a row that lead around its boxes on one side, the shortest first."""
    found = [arrow for arrow in diagram.arrows if arrow.side == side and arrow.source.row == row]
    return sorted(found, key=lambda arrow: arrow.target.column - arrow.source.column)


def route(diagram: Diagram, arrow: Arrow) -> list[tuple[float, float]]:
    """The corners of a connection."""
    source, target = arrow.source, arrow.target
    if arrow.side == "straight":
        y = source.bottom + source.height / 2
        return [(source.right, y), (target.left, min(max(y, target.bottom + _LINE), target.top - _LINE))]
    around = _around(diagram, source.row, arrow.side)
    # So that one box's connections do not cross, the longest leave leftmost and come in rightmost.
    leaving = [one for one in around if one.source is source]
    coming = [one for one in around if one.target is target]
    start = source.right - (leaving.index(arrow) + 1) * _LANE
    end = target.left + (coming.index(arrow) + 1) * _LANE
    row = [box for box in diagram.boxes if box.row == source.row]
    distance = (around.index(arrow) + 1) * _LANE
    if arrow.side == "above":
        lane = max(box.top for box in row) + distance
        return [(start, source.top), (start, lane), (end, lane), (end, target.top)]
    lane = min(box.bottom for box in row) - distance
    return [(start, source.bottom), (start, lane), (end, lane), (end, target.bottom)]


# --- on paper ---------------------------------------------------------------------------------------------------


def _draw(diagram: Diagram, title: str, path: Path) -> None:
    if path.suffix.lower() not in ENDINGS:
        raise ConfigError(f"{path}: a picture's name must end in {' or '.join(ENDINGS)}")
    try:  # an extra
        from matplotlib.figure import Figure
        from matplotlib.font_manager import FontProperties
        from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
        from matplotlib.path import Path as Corners
        from matplotlib.textpath import text_to_path
    except ImportError as error:
        raise ConfigError("a picture needs matplotlib: pip install 'nni-bertnas[plots]'") from error
    styles = {
        "title": FontProperties(weight="bold", size=_SIZE),
        "heading": FontProperties(style="italic", size=_SIZE),
        "option": FontProperties(size=_SIZE),
    }

    def measure(style: str, text: str) -> float:
        width: float = text_to_path.get_text_width_height_descent(text, styles[style], ismath=False)[0]
        return width * 1.05  # of outlines; drawn on pixels it can be wider

    width, height = place(diagram, measure)
    legend = list({(arrow.kind, arrow.open): None for arrow in diagram.arrows})
    if legend == [("fixed", False)]:
        legend = []  # nothing to tell apart
    legend_text = [_MEANINGS[look] for look in legend]
    legend_width = sum(measure("option", text) + 54 for text in legend_text)
    width = max(width, measure("title", title) * 1.3, legend_width) + 2 * _MARGIN
    below, above = _MARGIN + (2 * _LINE if legend else 0), _MARGIN + 2 * _LINE
    figure = Figure(figsize=(width / 72, (height + below + above) / 72))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(-_MARGIN, width - _MARGIN), ylim=(-height - below, above))
    axes.set_axis_off()

    def write(x: float, y: float, style: str, text: str, scale: float = 1.0) -> None:
        axes.text(x, y, text, fontproperties=styles[style], size=_SIZE * scale, va="center", parse_math=False)

    def line(corners: list[tuple[float, float]], kind: str, is_open: bool) -> None:
        look: dict[str, Any] = {"color": _COLOURS[kind], "linestyle": (0, (4, 2.5)) if is_open else "solid"}
        axes.add_patch(
            FancyArrowPatch(path=Corners(corners), arrowstyle="-|>", mutation_scale=9, linewidth=1.1, **look)
        )

    write(0, above - _MARGIN - _LINE / 2, "title", title, 1.3)
    for arrow in diagram.arrows:
        line(route(diagram, arrow), arrow.kind, arrow.open)
    for box in diagram.boxes:
        fill = "#f2f2f2" if box.plain else "#eef3f8"
        shape = FancyBboxPatch(
            (box.left, box.bottom), box.width, box.height, boxstyle="round,pad=0,rounding_size=4", fc=fill, ec="#555555"
        )
        axes.add_patch(shape)
        for number, (style, text) in enumerate(box.lines()):
            write(box.left + _PAD, box.top - _PAD - (number + 0.5) * _LINE, style, text)
    x = 0.0
    for (kind, is_open), text in zip(legend, legend_text, strict=True):
        y = -height - below + _MARGIN
        line([(x, y), (x + 28, y)], kind, is_open)
        write(x + 34, y, "option", text)
        x += measure("option", text) + 54
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror}); give another path") from error
