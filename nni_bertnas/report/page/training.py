"""The sections on how it was made: architecture weights and losses over epochs, wall time."""

from collections.abc import Sequence

from nni_bertnas.report.page.charts import bars, heat_map, lines
from nni_bertnas.report.page.gather import Page
from nni_bertnas.report.page.history import History
from nni_bertnas.report.page.markup import Markup, details, paragraph, section, tag
from nni_bertnas.report.progress import spell_seconds

_COLUMNS = 20  # of a heat map; of longer searches epochs are left out between
_FIRST = 6  # heat maps that are not folded away
_SERIES = 8  # curves of one chart
_MISSING = "This study has no history of epochs: it was made by an earlier version, or nothing was trained."


def weights(page: Page) -> Markup:
    """Section 4: the probability of every option over the epochs of a differentiable search."""
    maps = [one for history in page.histories for one in _maps(history)]
    if not maps:
        said = (
            "No differentiable search left its weights here: other strategies have none."
            if page.histories
            else _MISSING
        )
        return section("weights", "Architecture weights", paragraph(said, kind="none"))
    note = (
        "The softmax of the architecture weights after every epoch, on the right the last: the stronger, the likelier, "
        "each map by its own greatest. A search that made up its mind ends with one strong row."
    )
    more = [details(f"{len(maps) - _FIRST} more", tag("div", *maps[_FIRST:], class_="grid"))] if maps[_FIRST:] else []
    return section("weights", "Architecture weights", paragraph(note, kind="note"),
                   tag("div", *maps[:_FIRST], class_="grid"), *more)  # fmt: skip


def _maps(history: History) -> list[Markup]:
    found = []
    for label, options in history.probabilities().items():
        count = min(map(len, options.values()))
        step = max(1, -(-count // _COLUMNS))
        kept = range((count - 1) % step, count, step)  # the last epoch among them
        rows = {name: [values[number] for number in kept] for name, values in options.items()}
        found.append(heat_map(f"{history.unit.replace('_', ', ')}: {label}", rows, kept[0] + 1, count))
    return found


def losses(page: Page) -> Markup:
    """Section 5: what every stage's training said over its epochs."""
    stages = list(dict.fromkeys(one.stage for one in page.histories))
    charts = [chart for stage in stages for chart in _charts([one for one in page.histories if one.stage == stage])]
    if not charts:
        return section("losses", "Losses", paragraph(_MISSING, kind="none"))
    note = (
        "Epochs in the order in which they were trained. A curve in pieces is several trainings one after another: "
        "candidates of one search, or the last epochs of a student on its own rows."
    )
    return section("losses", "Losses", paragraph(note, kind="note"), tag("div", *charts, class_="grid"))


def _charts(histories: Sequence[History]) -> list[Markup]:
    """One chart per metric of a stage, a curve per unit; the parts of a loss share one where there is one unit."""
    stage = histories[0].stage
    keys = list(dict.fromkeys(key for one in histories for key in one.keys))
    parts = [key for key in keys if key.endswith("_loss") and key not in ("train_loss", "architecture_loss")]
    alone = ["train_loss", "architecture_loss", *(key for key in keys if key.startswith("dev_"))]
    found = []
    for key in (one for one in alone if one in keys):
        series = {one.unit.replace("_", ", ") or stage: one.curve(key) for one in histories}
        shown = {name: pieces for name, pieces in series.items() if pieces}
        for first in range(0, len(shown), _SERIES):
            some = dict(list(shown.items())[first : first + _SERIES])
            found.append(lines(f"{stage}: {key.replace('_', ' ')}", some, "epoch", key.replace("_", " ")))
    if parts and len(histories) == 1:
        series = {key.removesuffix("_loss").replace("_", " "): histories[0].curve(key) for key in parts}
        found.append(lines(f"{stage}: parts of the loss, unweighted", series, "epoch", "loss"))
    return found


def wall_time(page: Page) -> Markup:
    """Section 10: how long every stage took."""
    if not page.seconds:
        return section(
            "time", "Wall time", paragraph("No stage was run by bertnas, which keeps the time.", kind="none")
        )
    spelt = {name: spell_seconds(value) for name, value in page.seconds.items()}
    total = sum(page.seconds.values())
    for name, value in page.seconds.items():
        spelt[name] += f" ({100 * value / total:.0f} %)"
    return section("time", "Wall time", bars(f"Together {spell_seconds(total)}", page.seconds, spelt))
