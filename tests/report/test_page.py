"""The page of finished tiny studies of every kind of task, and in a browser."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import WORDS, tiny_run, tiny_study_fields, write_scores

from nni_bertnas.cli import main
from nni_bertnas.config import to_yaml
from nni_bertnas.data.metrics import METRICS
from nni_bertnas.errors import ConfigError, PhaseError
from nni_bertnas.report.page import predictions
from nni_bertnas.report.page.gather import Page, gather
from nni_bertnas.report.page.models import predicted_front
from nni_bertnas.report.page.predictions import predict_splits
from nni_bertnas.report.page.write import SECTIONS, render, write_page
from nni_bertnas.stages.choice import open_prices
from nni_bertnas.stages.run import Run, unit_name
from nni_bertnas.stages.stage import ensure, load
from nni_bertnas.student import latency
from nni_bertnas.tracking.tracker import Tracker

EVIL = "<script>window.stolen=1</script>"
NAMES = ["<b>joy</b>", "fear & 'anger'"]
KINDS = ("classification", *(pytest.param(kind, marks=pytest.mark.long) for kind in ("multi_label", "regression")))
SEED = {"seed": 0}


class History:
    """Writes what a unit says of its epochs where the page looks for it."""

    def __init__(self, run: Run, stage: str, unit: Any) -> None:
        name = "-".join(filter(None, (stage, unit_name(unit))))
        self.path = run.root / "history" / f"{name}.jsonl"

    def epoch(self, metrics) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps({"seconds": 1.0, **metrics}) + "\n")

    def progress(self, done: int, total: int, what: str = "rows", loss: float | None = None) -> None: ...


def write_rows(path: Path, sets: bool) -> str:
    """Texts of the tiny model's words, now and then with HTML in them; a fifth of the labels is not to be learnt."""
    generator = np.random.default_rng(0)
    rows = []
    for number in range(400):
        has = generator.random(2) < 0.5 if sets else np.eye(2)[number % 2] == 1
        words = [WORDS[10 * label + int(generator.integers(0, 3))] for label in range(2) if has[label]]
        words += [WORDS[one] for one in generator.integers(30, 95, 4)]
        if generator.random() < 0.2:
            has = ~has
        names = [name for name, one in zip(NAMES, has, strict=True) if one]
        text = " ".join(generator.permutation(words)) + (f" {EVIL}" if number % 3 == 0 else "")
        rows.append({"text": text, "label": names if sets else names[0]})
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def fields_of(root: Path, kind: str) -> dict[str, Any]:
    """Sections of a study of a kind of task."""
    if kind == "regression":
        task = write_scores(root / "scores")
    else:
        custom = {
            "train": write_rows(root / "rows.jsonl", kind == "multi_label"),
            "text_columns": ["text"],
            "kind": kind,
        }
        task = {"name": "custom", "source": "files", "max_length": 32, "custom": custom, "data_dir": None}
    one_shot = kind == "classification"
    return {
        "task": task,
        "teacher": {"epochs": 2, "learning_rate": 2e-3},
        "student": {"encoding": "joint", "head": "pool"},
        "cell": {"strategy": "darts" if one_shot else "random", "epochs": 3 if one_shot else 1, "depths": [1, 2]},
        "block": {"no_layer": True},
        "supernet": {"bag": True, "epochs": 2, "students": 2 if one_shot else 0},
    }


@pytest.fixture(scope="module", params=KINDS)
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A study of every kind from its teacher to its students, with the history of its epochs."""
    root = tmp_path_factory.mktemp(request.param)
    tiny_study_fields(root)
    run = tiny_run(root, **fields_of(root, request.param))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency.OtherWork, "cores", lambda self: 0.0)  # what is measured is kept, whoever else works
        for name in ("teacher", "features", "cell", "block", "supernet", "frontier"):
            for unit in load(name).units(run):
                ensure(run, name, unit, Tracker(watcher=History(run, name, unit)))
            run.record_seconds(name, 100.0)
    return run


@pytest.fixture(scope="module")
def page(finished: Run) -> Page:
    return gather(finished)


class Parsed(HTMLParser):
    """The elements of a page, the texts of its scripts, and all other text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.scripts = "", [""]
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data):
        if self.lasttag == "script":
            self.scripts[-1] += data
        elif self.lasttag != "style":
            self.text += data


def test_every_section_is_there_and_users_words_are_text(finished: Run, page: Page) -> None:
    text = render(page)
    parsed = Parsed(text)
    assert [attributes["id"] for name, attributes in parsed.elements if name == "section"] == list(SECTIONS)
    assert [name for name, _ in parsed.elements].count("script") == 1
    assert "b" not in {name for name, _ in parsed.elements}  # of the labels
    if page.kind != "regression":
        assert EVIL in parsed.text and NAMES[0] in parsed.text and NAMES[1] in parsed.text
    links = [attributes[key] for _, attributes in parsed.elements for key in ("src", "href") if key in attributes]
    assert links and all(link.startswith(("#", "data:")) for link in links)
    assert not re.search(r"[=\" ,](nan|inf)\b|https?://", text)
    assert len(text) < 400_000
    for number, section in enumerate(text.split("<section")[1:]):
        assert section.count("<svg") == len(re.findall(r'<svg[^>]*role="img"[^>]*aria-label="[^"]', section)), number


def test_predictions_give_the_scores_of_the_results(page: Page) -> None:
    assert set(page.predictions) == {"dev", page.final[0]}
    for split, own in page.predictions.items():
        assert len(own.rows) == own.total == page.rows[split]
        for side in ("teacher", "student"):
            found = METRICS[page.metric].compute(own.labels, own.answers(side))
            assert found == pytest.approx(page.result[side][f"{split}_{page.metric}"], abs=2e-3)


def test_where_they_part_is_counted_and_listed(page: Page) -> None:
    own, text = page.predictions["dev"], render(page)
    listed = text.split('id="parted"')[1].split("</table>")[0].count("<tr data-group")
    if page.kind == "regression":
        assert listed == len(own.rows)
        return
    apart = [n for n in range(len(own.rows)) if np.any(own.answers("teacher")[n] != own.answers("student")[n])]
    assert listed == len(apart) > 1
    assert f"They answer differently on {len(apart)} of {len(own.rows)} rows of dev" in text
    assert EVIL not in text


def test_what_was_predicted_is_read_again(finished: Run, page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = finished.folder("supernet", SEED) / "student"
    assert len(list((finished.root / "report").glob("predictions-*.json"))) == 1

    def never(folder):
        raise ConfigError("predicted again")

    monkeypatch.setattr(predictions, "load_predictor", never)
    again = predict_splits(finished, folder, list(page.predictions), page.kind)
    for split, own in again.items():
        assert all(np.array_equal(own.sides[side], page.predictions[split].sides[side]) for side in own.sides)
    monkeypatch.setattr(predictions, "MOST_ROWS", 20)
    with pytest.raises(ConfigError, match="predicted again"):
        predict_splits(finished, folder, ["dev"], page.kind)
    monkeypatch.undo()
    monkeypatch.setattr(predictions, "MOST_ROWS", 20)
    part = predict_splits(finished, folder, ["dev"], page.kind)["dev"]
    assert (len(part.rows), part.total) == (20, page.rows["dev"])
    whole = page.predictions["dev"]
    for number, text in enumerate(part.rows.texts):
        place = whole.rows.texts.index(text)
        assert part.sides["student"][number] == pytest.approx(whole.sides["student"][place], abs=1e-4)
    assert f"20 random rows of the {part.total} of dev" in render(replace(page, predictions={"dev": part}))


def test_the_front_is_that_of_the_latencies_that_are_kept(finished: Run, page: Page) -> None:
    found, why = predicted_front(finished)
    assert why == "" and found == page.front
    expected = open_prices(finished).front("latency_ms")
    assert found == sorted((one.latency_ms, one.score) for one in expected)
    assert all(a[1] > b[1] for a, b in pairwise(found))


def test_a_front_measures_nothing(finished: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Run, "shared", tmp_path)
    for file in (finished.root / "report").glob("front-*.json"):
        file.unlink()
    found, why = predicted_front(finished)
    assert found == [] and "bertnas profile" in why and not list(tmp_path.iterdir())


def test_weights_and_losses_are_those_of_the_history(page: Page) -> None:
    text = render(page)
    weights = text.split('id="weights"')[1].split("</section>")[0]
    losses = text.split('id="losses"')[1].split("</section>")[0]
    assert "teacher: train loss" in losses and "supernet: train loss" in losses
    if page.kind != "classification":
        assert "No differentiable search left its weights here" in weights
        return
    cell = next(one for one in page.histories if one.stage == "cell")
    label, options = next(iter(cell.probabilities().items()))
    assert all(len(values) == 3 for values in options.values())
    assert sum(values[-1] for values in options.values()) == pytest.approx(1, abs=1e-4)
    name, values = next(iter(options.items()))
    assert f"{name}: {values[0]:.3f} to {values[-1]:.3f}" in weights and f"depth1: {label}" in weights


def test_a_section_without_data_says_so(page: Page) -> None:
    text = render(
        replace(
            page, models=[one for one in page.models if one.result is None], front=[], front_note="no features",
            histories=[], rankings=[], cells={}, predictions={}, predictions_note="the student is gone", seconds={},
        )
    )  # fmt: skip
    sections = {one.split('"')[1]: one for one in text.split("<section ")[1:]}
    assert list(sections) == list(SECTIONS)
    for name in (
        "architectures",
        "weights",
        "losses",
        "candidates",
        "confusions",
        "calibration",
        "disagreements",
        "time",
    ):
        assert 'class="none"' in sections[name], name
    assert "the student is gone" in sections["answer"] and "no features" in sections["trade-off"]


def test_lineage_names_what_a_result_was_made_from(finished: Run, page: Page) -> None:
    found = {one.name: one for one in page.lineage}
    block = found["block block1"]
    assert {name for name, _ in block.sources} == {"cell block1_depth1", "cell block1_depth2"}
    assert dict(found["supernet seed0"].sources).keys() == {"block block0", "block block1"}
    cell = finished.read("cell", {"block": 1, "depth": 2})
    assert cell is not None and dict(block.sources)["cell block1_depth2"] == cell["fingerprint"]
    assert page.settings_differ == []


def test_the_command_writes_the_page(finished: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = tmp_path / "study.yml"
    study.write_text(to_yaml(finished.study))
    assert main(["report", str(study)]) == 0
    assert f"the report as a page: {finished.root / 'report.html'}" in capsys.readouterr().out
    assert main(["report", str(study), "--html", str(tmp_path / "deep" / "page.html")]) == 0
    assert (tmp_path / "deep" / "page.html").read_text().startswith("<!doctype html>")
    (tmp_path / "file").touch()
    assert main(["report", str(study), "--html", str(tmp_path / "file" / "page.html")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_without_a_student_there_is_no_page(tmp_path: Path) -> None:
    run = tiny_run(tmp_path)
    with pytest.raises(PhaseError, match="holds no student"):
        write_page(run)
    assert not (run.root / "report.html").exists()


# --- in a browser -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        said = "no chromium in PATH: apt-get install chromium, as make test does for root"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(said)
    with playwright.sync_playwright() as started:
        launched = started.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_in_a_browser(finished: Run, page: Page, browser: Any, width: int, scheme: str, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    file.write_text(render(page))
    opened = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    said: list[str] = []
    asked: list[str] = []
    opened.on("console", lambda message: said.append(message.text))
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on("request", lambda request: asked.append(request.url))
    opened.goto(file.as_uri())
    assert [one for one in asked if not one.startswith("data:")] == [file.as_uri()]
    assert opened.evaluate("window.stolen") is None
    for name in SECTIONS:
        section = opened.locator(f"section#{name}")
        assert section.is_visible() and section.locator("h2").is_visible()
    opened.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = true))")
    assert opened.evaluate("document.documentElement.scrollWidth <= innerWidth")
    light = sum(map(int, re.findall(r"\d+", opened.evaluate("getComputedStyle(document.body).backgroundColor"))[:3]))
    assert (light > 600) == (scheme == "light")
    _filter(opened)
    assert said == []
    opened.close()


def _filter(opened: Any) -> None:
    """The search box leaves the rows that hold all words, and the list those of its group."""
    shown = "Array.from(document.querySelectorAll('#parted tbody tr:not([hidden])'), (row) => row.innerText)"
    more = opened.locator("#more")
    if more.is_visible():
        more.click()
    every = opened.evaluate(shown)
    word = every[-1].split()[0]
    opened.fill("#search", word.upper())
    fitting = [row for row in every if word in row.lower()]
    assert opened.evaluate(shown) == fitting and 0 < len(fitting) < len(every)
    assert opened.inner_text("#shown") == f"{len(fitting)} of {len(every)} rows"
    opened.fill("#search", "no such word")
    assert opened.evaluate(shown) == []
    opened.fill("#search", "")
    groups = opened.eval_on_selector_all("#group option", "(all) => all.map((one) => one.value)")
    for group in filter(None, groups):
        opened.select_option("#group", group)
        rows = opened.evaluate(shown)
        right = [re.findall("[\N{CHECK MARK}\N{BALLOT X}]", row) for row in rows]
        marks = {"teacher": ["\N{CHECK MARK}", "\N{BALLOT X}"], "student": ["\N{BALLOT X}", "\N{CHECK MARK}"]}
        assert rows and all(one == marks.get(group, ["\N{BALLOT X}"] * 2) for one in right)
    if any(groups):
        opened.select_option("#group", "")
    assert opened.locator("#group").is_visible() == any(groups)
    assert opened.evaluate(shown) == every
