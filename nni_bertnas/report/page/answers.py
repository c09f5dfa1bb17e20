"""The sections on what the models answer on dev: confusions, calibration, where the two part."""

from collections.abc import Sequence

import numpy as np

from nni_bertnas.data.metrics import f1_by_label
from nni_bertnas.report.page.charts import reliability, scatter
from nni_bertnas.report.page.gather import Page
from nni_bertnas.report.page.markup import Markup, figures, join, paragraph, section, table, tag
from nni_bertnas.report.page.models import LOOKS
from nni_bertnas.report.page.predictions import Predictions
from nni_bertnas.report.page.statistics import calibration_error, confusion, label_counts, reliability_bins
from nni_bertnas.stages.supernet import SEARCHED

SIDES = ("student", "teacher")
_LOOK = {"student": LOOKS[SEARCHED], "teacher": LOOKS["teacher"]}
_MATRIX = 12  # classes up to which a matrix is shown; of more the commonest confusions
_COMMON = 25
MOST = 300  # rows that are listed
_LONG = 600  # letters of a text that are shown
_NOTES = {
    "classification": "Rows are labels, columns answers; shares are of the rows of a label.",
    "regression": "On the dashed line prediction and data are the same.",
    "multi_label": "Found: in the data and predicted; too many: predicted alone; missed: in the data alone.",
}
# The groups that rows can be shown by; which there are depends on the task.
_GROUPS = {"teacher": "teacher right", "student": "student right", "neither": "neither right"}


def _missing(anchor: str, title: str, page: Page) -> Markup:
    why = page.predictions_note or "there are no rows"
    return section(anchor, title, paragraph(f"Nothing was predicted: {why}", kind="none"))


def confusions(page: Page) -> Markup:
    """Section 7: what is taken for what."""
    title = "Predicted scores" if page.kind == "regression" else "Confusions"
    own = page.predictions.get("dev")
    if own is None:
        return _missing("confusions", title, page)
    shown = {"classification": _classes, "regression": _scores, "multi_label": _labels}[page.kind]
    return section(
        "confusions",
        title,
        *shown(own, page.label_names),
        paragraph(f"{_NOTES[page.kind]} Of {_of(own)}.", kind="note"),
    )


def _of(own: Predictions) -> str:
    count = len(own.rows)
    return f"{count:,} rows of dev" if count == own.total else f"{count:,} random rows of the {own.total:,} of dev"


def _classes(own: Predictions, names: Sequence[str]) -> list[Markup]:
    found = {side: confusion(own.labels, own.answers(side), len(names)) for side in SIDES}
    if len(names) <= _MATRIX:
        matrices = [_matrix(side.capitalize(), found[side], names) for side in SIDES]
        return [tag("div", *matrices, class_="pair")]
    common = found["student"].copy()
    np.fill_diagonal(common, 0)
    order = np.argsort(-common, axis=None, kind="stable")[:_COMMON]
    places = [divmod(int(place), len(names)) for place in order if common.flat[place]]
    rows = [[names[a], names[b], str(common[a, b]), str(found["teacher"][a, b])] for a, b in places]
    return [table(f"The student's commonest confusions among {len(names)} classes",
                  ["label", "answer", "student", "teacher"], rows, text=(0, 1))]  # fmt: skip


def _matrix(caption: str, counts: np.ndarray, names: Sequence[str]) -> Markup:
    totals = counts.sum(1)
    rows = []
    for name, own, total in zip(names, counts, totals, strict=True):
        shares = own / max(1, total)
        cells = [
            tag("span", f"{count:,}", tag("small", f"{100 * share:.0f} %"), class_="cell", style=f"--share:{share:.2f}")
            for count, share in zip(own, shares, strict=True)
        ]
        rows.append([name, *cells, f"{total:,}"])
    return table(caption, ["", *names, "rows"], rows, class_="matrix")


def _scores(own: Predictions, names: Sequence[str]) -> list[Markup]:
    charts, rows = [], []
    for side in SIDES:
        answers = own.answers(side)
        charts.append(scatter(f"{side.capitalize()}: predicted against the data", own.labels, answers, _LOOK[side]))
        errors = answers - own.labels
        means = np.abs(errors).mean(), np.sqrt((errors**2).mean()), errors.mean()
        rows.append([side, *(figures(value, 3) for value in means)])
    errors_table = table("Errors", ["", "mean absolute", "root mean square", "mean (bias)"], rows)
    return [tag("div", *charts, class_="pair"), errors_table]


def _labels(own: Predictions, names: Sequence[str]) -> list[Markup]:
    tables = []
    for side in SIDES:
        answers = own.answers(side)
        counts, f1 = label_counts(own.labels, answers), f1_by_label(own.labels, answers)
        rows = [
            [name, f"{both + missed:,}", f"{both:,}", f"{more:,}", f"{missed:,}", f"{100 * f1[number]:.1f}"]
            for number, (name, (both, more, missed)) in enumerate(zip(names, counts, strict=True))
        ]
        tables.append(table(side.capitalize(), ["", "rows", "found", "too many", "missed", "F1, %"], rows))
    return [tag("div", *tables, class_="pair")]


def calibration(page: Page) -> Markup:
    """Section 8: whether confidence means what it says."""
    own = page.predictions.get("dev")
    if own is None:
        return _missing("calibration", "Calibration", page)
    if page.kind == "regression":
        said = "A score comes without a confidence, so there is nothing that could be calibrated."
        return section("calibration", "Calibration", paragraph(said, kind="none"))
    bins = {side: reliability_bins(*_confidence(own, side)) for side in SIDES}
    what = "each label's probability against how often it is in the set" if page.kind == "multi_label" else (
        "the confidence in the answer against how often it is right")  # fmt: skip
    chart = reliability(f"Reliability: {what}", bins)
    rows = [
        [side, f"{100 * calibration_error(found):.2f}",
         f"{100 * sum(b.count * b.confidence for b in found) / sum(b.count for b in found):.2f}",
         f"{100 * sum(b.count * b.share for b in found) / sum(b.count for b in found):.2f}"]
        for side, found in bins.items()
    ]  # fmt: skip
    note = (
        "Expected calibration error: how far confidence and the share that is right are apart, over ten bins weighted "
        "by their rows; 0 is calibrated. A curve below the dashed line is too sure of itself. Dots are the larger, the "
        f"more rows they stand for. Of {_of(own)}."
    )
    heads = ["", "calibration error, %", "mean confidence, %", "right, %"]
    return section("calibration", "Calibration",
                   tag("div", chart, tag("div", table("Calibration", heads, rows), paragraph(note, kind="note")),
                       class_="pair"))  # fmt: skip


def _confidence(own: Predictions, side: str) -> tuple[np.ndarray, np.ndarray]:
    """Of every prediction: how sure, and whether it holds."""
    found = own.sides[side]
    if own.kind == "multi_label":
        return found.ravel(), own.labels.ravel().astype(float)
    return found.max(1), (found.argmax(1) == own.labels).astype(float)


def disagreements(page: Page) -> Markup:
    """Section 9: the rows on which teacher and student part."""
    title = "Where the two part"
    own = page.predictions.get("dev")
    if own is None:
        return _missing("disagreements", title, page)
    order, count, said = _parted(own)
    if not count:
        return section("disagreements", title, paragraph(f"They answer alike on all of {_of(own)}.", kind="none"))
    rows = [_row(own, int(number), page.label_names) for number in order[:MOST]]
    heads = [
        *(["first text", "second text"] if own.rows.pairs is not None else ["text"]),
        "label",
        "teacher",
        "student",
    ]
    body = tag("tbody", *(tag("tr", *cells, data_group=group) for group, cells in rows))
    groups = [name for name in _GROUPS if any(group == name for group, _ in rows)]
    options = [tag("option", "all", value=""), *(tag("option", _GROUPS[name], value=name) for name in groups)]
    controls = tag(
        "div",
        tag("label", "Search ", tag("input", type="search", id="search", placeholder="a word of a text or label")),
        tag("label", "Show ", tag("select", *options, id="group"), hidden=not groups),
        tag("output", f"{len(rows):,} rows", id="shown", aria_live="polite"),
        class_="controls",
    )
    left = f" Listed are the {len(rows):,} first, by how far they are apart." if count > len(rows) else ""
    more = tag("button", type="button", id="more", hidden=True)  # page.js says what it does
    head = tag("thead", tag("tr", *(tag("th", one, scope="col") for one in heads)))
    shown = tag("table", tag("caption", "Texts with their label and both answers"), head, body, id="parted")
    return section("disagreements", title, paragraph(f"{said}{left}"), controls, shown, more)


def _parted(own: Predictions) -> tuple[np.ndarray, int, str]:
    """Numbers of rows, those farthest apart first; how many part; in words."""
    distance = np.abs(own.sides["teacher"] - own.sides["student"]).sum(1)
    order = np.argsort(-distance, kind="stable")
    if own.kind == "regression":
        said = f"On {_of(own)} the two scores are {distance.mean():.2f} apart on average."
        return order, len(order), said
    answers = [own.answers(side) for side in ("teacher", "student")]
    apart = answers[0] != answers[1] if own.kind == "classification" else (answers[0] != answers[1]).any(1)
    count = int(apart.sum())
    return (
        order[apart[order]],
        count,
        f"They answer differently on {count:,} of {_of(own)} ({100 * count / len(order):.1f} %).",
    )


def _row(own: Predictions, number: int, names: Sequence[str]) -> tuple[str, list[Markup]]:
    """The group of a row, and its cells."""
    texts = [own.rows.texts[number], *([] if own.rows.pairs is None else [own.rows.pairs[number]])]
    cells = [tag("td", text if len(text) <= _LONG else f"{text[:_LONG]}…", class_="text") for text in texts]
    label = own.labels[number]
    cells.append(tag("td", _spell(own, label, names), data_name="label"))
    right = []
    for side in ("teacher", "student"):
        answer = own.answers(side)[number]
        if own.kind == "regression":
            cells.append(
                tag("td", figures(answer, 2), tag("small", figures(answer - label, 2, sign=True)), data_name=side)
            )
            continue
        right.append(bool(np.all(answer == label)))
        mark = tag("span", "✓" if right[-1] else "✗", class_="right" if right[-1] else "wrong",
                   role="img", aria_label="right" if right[-1] else "wrong")  # fmt: skip
        sure = tag("small", f"{100 * own.sides[side][number].max():.0f} %") if own.kind == "classification" else ""
        cells.append(tag("td", join([mark, " ", _spell(own, answer, names), sure]), data_name=side))
    group = (
        ""
        if not right
        else "teacher"
        if right[0] and not right[1]
        else "student"
        if right[1] and not right[0]
        else "neither"
    )
    return group, cells


def _spell(own: Predictions, label: np.ndarray, names: Sequence[str]) -> str:
    if own.kind == "regression":
        return f"{label:.2f}"
    if own.kind == "multi_label":
        return ", ".join(name for name, one in zip(names, label, strict=True) if one) or "no label"
    return names[int(label)]
