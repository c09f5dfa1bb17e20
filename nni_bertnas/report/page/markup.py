"""HTML and SVG as text. What is no `Markup` yet is escaped, as texts and names are the users' own."""

import html
from collections.abc import Iterable, Sequence
from typing import Any

NONE = "\N{EN DASH}"  # in place of a figure that is not there
_VOID = {"input", "meta"}


class Markup(str):
    """Text that is HTML already."""


def escape(value: Any) -> Markup:
    """A value as HTML text; what is HTML already stays as it is."""
    return value if isinstance(value, Markup) else Markup(html.escape(str(value), quote=True))


def join(parts: Iterable[Any]) -> Markup:
    """Values one after another, each escaped where it has to be."""
    return Markup("".join(map(escape, parts)))


def tag(name: str, *content: Any, **attributes: Any) -> Markup:
    """An element.

    Args:
        name: Of the element.
        content: Escaped where it is no markup.
        attributes: `class_` is class, `aria_label` is aria-label; numbers are rounded, None and False are left out.
    """
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_value(value)}"'
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    return Markup(f"<{name}{given}>" if name in _VOID else f"<{name}{given}>{join(content)}</{name}>")


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return "" if value is True else html.escape(str(value), quote=True)


def figures(value: float, digits: int, *, sign: bool = False) -> str:
    """A number with a true minus sign.

    Args:
        value: The number.
        digits: Decimals.
        sign: Whether a plus is written.
    """
    text = f"{value:+,.{digits}f}" if sign else f"{value:,.{digits}f}"
    return text.replace("-", "\N{MINUS SIGN}")


def paragraph(*content: Any, kind: str | None = None) -> Markup:
    """A paragraph; `note` is small print, `none` says that there is nothing to show."""
    together = Markup(join(content).replace(" %", "\N{NO-BREAK SPACE}%"))
    return tag("p", together, class_=kind)


def table(
    caption: str, heads: Sequence[Any], rows: Iterable[Sequence[Any]], *, text: Iterable[int] = (0,), **attributes: Any
) -> Markup:
    """A table that scrolls by itself where the page is narrow.

    Args:
        caption: Says what it shows.
        heads: Of the columns.
        rows: Their cells; the first is the row's head.
        text: Numbers of the columns that are no figures, and stand to the left.
        attributes: Of the table.
    """
    left = set(text)
    sides = ["left" if number in left else "figure" for number in range(len(heads))]
    head = join(tag("th", one, scope="col", class_=side) for one, side in zip(heads, sides, strict=True))
    body = [
        join(
            tag("th", cell, scope="row", class_=sides[0]) if not number else tag("td", cell, class_=sides[number])
            for number, cell in enumerate(row)
        )
        for row in rows
    ]
    inner = tag("table", tag("caption", caption), tag("thead", tag("tr", head)),
                tag("tbody", *(tag("tr", row) for row in body)), **attributes)  # fmt: skip
    # Reachable by keyboard, as else nobody without a mouse could scroll it.
    return tag("div", inner, class_="scroll", tabindex=0, role="region", aria_label=caption)


def details(summary: Any, *content: Any) -> Markup:
    """What is folded away at first."""
    return tag("details", tag("summary", summary), *content)


def section(anchor: str, title: str, *content: Any) -> Markup:
    """One section of the page."""
    return tag(
        "section", tag("h2", title, id=f"{anchor}-title"), *content, id=anchor, aria_labelledby=f"{anchor}-title"
    )
