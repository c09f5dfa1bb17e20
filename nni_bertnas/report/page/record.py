"""The section on what it was made with, and from what."""

from nni_bertnas.report.page.gather import Page
from nni_bertnas.report.page.markup import NONE, Markup, details, join, paragraph, section, table, tag
from nni_bertnas.report.progress import spell_seconds


def record(page: Page) -> Markup:
    """Section 11: configuration, versions, machine, lineage."""
    said = []
    if page.settings_differ:
        names = ", ".join(page.settings_differ)
        said.append(paragraph(f"The student was made when the study said otherwise of {names}; its own settings stand "
                              "in study.yml beside its result.", kind="note"))  # fmt: skip
    links = [
        [one.name, tag("code", one.fingerprint), NONE if one.seconds is None else spell_seconds(one.seconds),
         join(_sources(one.sources))]
        for one in page.lineage
    ]  # fmt: skip
    return section(
        "record", "Configuration and lineage", *said,
        details("The study, every default filled in", tag("pre", page.settings, tabindex=0)),
        tag("div", table("Versions of this report", ["", "version"], page.versions.items(), text=(0, 1)),
            table("Machine of this report", ["", ""], page.machine.items(), text=(0, 1)), class_="pair"),
        details(
            f"Lineage of {len(page.lineage)} results",
            paragraph("A result is made anew where its fingerprint no longer fits: it is of the settings, the data and "
                      "the fingerprints of what it builds on.", kind="note"),
            table("Lineage", ["", "fingerprint", "made in", "from"], links, text=(0, 1, 3)),
        ),
        paragraph("Everything lies in ", tag("code", page.root), ".", kind="note"),
    )  # fmt: skip


def _sources(sources: tuple[tuple[str, str], ...]) -> list[Markup | str]:
    parts: list[Markup | str] = []
    for name, fingerprint in sources:
        parts += [", " if parts else "", name, " ", tag("code", fingerprint[:6])]
    return parts or ["data and settings"]
