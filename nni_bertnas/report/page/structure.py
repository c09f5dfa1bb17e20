"""The sections on what students are made of."""

from collections.abc import Mapping, Sequence
from typing import Any

from nni_bertnas.report.page.architectures import student_picture
from nni_bertnas.report.page.gather import Page
from nni_bertnas.report.page.markup import NONE, Markup, details, paragraph, section, table, tag
from nni_bertnas.report.page.models import Model
from search_space.cells import spell

_FIRST = 6  # pictures that are not folded away


def architectures(page: Page) -> Markup:
    """Section 3: every student drawn."""
    drawn = [(number, one) for number, one in enumerate(page.models, 1) if one.result is not None]
    if not drawn:
        said = "No student with cells was kept, so there is nothing to draw."
        return section("architectures", "Architectures", paragraph(said, kind="none"))
    figures = [_picture(page, number, one) for number, one in drawn]
    more = (
        [details(f"{len(figures) - _FIRST} more", tag("div", *figures[_FIRST:], class_="cards"))]
        if figures[_FIRST:]
        else []
    )
    note = (
        "Maps between widths are not drawn: where they have no layer between them they are one matrix. Orange lines "
        "add an earlier output."
    )
    return section("architectures", "Architectures", tag("div", *figures[:_FIRST], class_="cards"), *more,
                   paragraph(note, kind="note"))  # fmt: skip


def _picture(page: Page, number: int, one: Model) -> Markup:
    assert one.result is not None
    score, latency = 100 * one.side[f"dev_{page.metric}"], one.side["latency_ms"]
    said = "; ".join(map(spell, one.result["architecture"]))
    caption = tag(
        "figcaption", tag("strong", f"{number}  {one.name}"), tag("span", f"{score:.2f} % on dev, {latency:.2f} ms")
    )
    picture = student_picture(page.space, one.result, f"{one.name}, block by block: {said}")
    return tag("figure", caption, tag("div", picture, class_="scroll", tabindex=0), class_="card")


def candidates(page: Page) -> Markup:
    """Section 6: the candidates of every block."""
    if not page.rankings and not page.cells:
        return section("candidates", "Candidates per block", paragraph("No cell was searched yet.", kind="none"))
    heads = ["", "depth", "score", "replaced", "params, k", "MFLOPs", "ms", "architecture"]
    parts = []
    for ranking in page.rankings:
        block = ranking["block"]
        chosen = page.result["architecture"][block] if block < len(page.result["architecture"]) else None
        rows = [_row(one, number, one["architecture"] == chosen) for number, one in enumerate(ranking["candidates"], 1)]
        parts.append(table(f"Block {block}, best first", heads, rows, text=(0, 7), class_="wide"))
    note = (
        "Score: the relative L1 error of a cell's output against the block's, after the block phase; lower is better. "
        "Replaced: how far the teacher's answers move with the cell in the block's place. Latencies are those of "
        "trials that may have run beside others; the choice was made by the machine's table. ● is in the student."
    )
    searched = [_search(name, one, heads) for name, one in page.cells.items()]
    more = [details(f"What the {len(searched)} searches gave to the block phase", *searched)] if searched else []
    return section("candidates", "Candidates per block", paragraph(note, kind="note"), *parts, *more)


def _search(name: str, result: Mapping[str, Any], heads: Sequence[str]) -> Markup:
    tried = result.get("num_searched") or NONE
    caption = f"{name.replace('_', ', ')}: {result['strategy']} in {result['space']}, {tried} tried"
    rows = [_row(one, number, False) for number, one in enumerate(result["candidates"], 1)]
    return table(caption, heads, rows, text=(0, 7), class_="wide")


def _row(one: Mapping[str, Any], number: int, chosen: bool) -> list[Any]:
    replaced = one.get("replaced")
    return [
        f"{number} ●" if chosen else str(number),
        str(one["depth"]),
        f"{one['score']:.4f}",
        NONE if replaced is None else f"{replaced:.4f}",
        f"{one['num_params'] / 1e3:,.1f}",
        f"{one['num_flops'] / 1e6:,.2f}",
        f"{one['latency_ms']:.2f}",
        spell(one["architecture"]),
    ]
