"""A study's report as one HTML file, which asks nobody for anything when it is opened."""

import re
from pathlib import Path

from nni_bertnas import __version__
from nni_bertnas.artifacts import write_whole
from nni_bertnas.errors import ConfigError
from nni_bertnas.report.page.answers import calibration, confusions, disagreements
from nni_bertnas.report.page.gather import Page, gather
from nni_bertnas.report.page.markup import Markup, escape, join, tag
from nni_bertnas.report.page.record import record
from nni_bertnas.report.page.structure import architectures, candidates
from nni_bertnas.report.page.summary import answer, trade_off
from nni_bertnas.report.page.training import losses, wall_time, weights
from nni_bertnas.stages.run import Run

FILE = "report.html"
# In the order of the page.
SECTIONS = {
    "answer": answer,
    "trade-off": trade_off,
    "architectures": architectures,
    "weights": weights,
    "losses": losses,
    "candidates": candidates,
    "confusions": confusions,
    "calibration": calibration,
    "disagreements": disagreements,
    "time": wall_time,
    "record": record,
}
_TITLE = re.compile(r"<h2[^>]*>(.*?)</h2>", re.DOTALL)


def write_page(run: Run, path: Path | None = None) -> Path:
    """Write the page.

    Args:
        run: Of a study that has a student.
        path: Of the file; None: report.html in the study's folder.

    Returns:
        Where it is.

    Raises:
        ConfigError: It cannot be written, or the task's data cannot be read.
        PhaseError: There is no student yet.
    """
    path = path or run.root / FILE
    text = render(gather(run))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text)
    except OSError as error:
        raise ConfigError(f"--html {path}: cannot be written ({error.strerror}); give another path") from error
    return path


def render(page: Page) -> str:
    """The page as HTML."""
    sections = [make(page) for make in SECTIONS.values()]
    links = [
        tag("li", tag("a", Markup(_TITLE.search(one)[1]), href=f"#{name}"))  # type: ignore[index]
        for name, one in zip(SECTIONS, sections, strict=True)
    ]
    rows = ", ".join(f"{name} {count:,}" for name, count in page.rows.items())
    fields = {
        "study": escape(page.study),
        "about": escape(f"{page.task}, {page.kind.replace('_', '-')}; rows: {rows}"),
        "links": join(links),
        "sections": join(sections),
        "version": escape(__version__),
        "style": _asset("page.css"),
        "script": _asset("page.js"),
    }
    # At once, so that what a field holds is not looked at for other fields.
    return re.sub(r"\{\{(\w+)\}\}", lambda found: fields[found[1]], _asset("page.html"))


def _asset(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")
