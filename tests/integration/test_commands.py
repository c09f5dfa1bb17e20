"""Every block of commands in README and docs is run, in the order in which a reader meets it.

The blocks of a page run in one shell, in a fresh folder with `experiment_configs/` and the rows that pages speak of. A
line right above a block says where that cannot be: `<!-- run: long -->` only with BERTNAS_LONG=1, in a folder that has
the finished studies `demo` and `tickets`, too, where they are named; `<!-- run: no: REASON -->` never.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas
import pytest
from tiny import shrink_demo

from nni_bertnas.data.texts import reviews_file

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {path.name: path.read_text() for path in PAGES}
FENCE = re.compile(r"(?:^<!-- run: (?P<mark>.+) -->\n)?^```(?P<language>.*)\n(?P<text>(?s:.*?))^```$", re.MULTILINE)
COMMAND = re.compile(r"^\s*(bertnas|nnictl|make|pip|python|sbatch|tensorboard|wandb|curl|docker) ", re.MULTILINE)
MARK = re.compile(r"long|no: \S.{9,}")
EXTRAS = {"--to onnx": "onnxscript", "bertnas serve": "uvicorn", "--draw": "matplotlib"}  # what needs which package
QUICK_SECONDS, LONG_SECONDS = 300, 1500


@dataclass(frozen=True)
class Block:
    """One block of commands: its page and line, its mark, its text."""

    page: str
    line: int
    mark: str
    text: str


def blocks(page: str) -> list[Block]:
    text = TEXTS[page]
    return [
        Block(page, text[: one.start("text")].count("\n"), one["mark"] or "", one["text"])
        for one in FENCE.finditer(text)
        if one["language"] == "bash"
    ]


BLOCKS = {page: blocks(page) for page in TEXTS}
QUICK = {page: [one for one in found if not one.mark] for page, found in BLOCKS.items()}
LONG = {page: [one for one in found if one.mark in ("", "long")] for page, found in BLOCKS.items()}
QUICK_PAGES = [page for page, found in QUICK.items() if found]
LONG_PAGES = [page for page, found in LONG.items() if len(found) > len(QUICK[page])]


def write_rows(folder: Path) -> None:
    """Sentences of film reviews as tickets: their first words a subject, their opinion a queue."""
    rows = pandas.read_csv(reviews_file()).query("source == 'rotten_tomatoes'").sample(420, random_state=0)
    tickets = pandas.DataFrame(
        {
            "subject": rows.text.str.split().str[:5].str.join(" "),
            "body": rows.text,
            "queue": rows.label.map({0: "complaint", 1: "praise"}),
        }
    )
    (folder / "data").mkdir()
    for path in (folder / "data" / "tickets.csv", folder / "tickets.csv"):
        tickets[:320].to_csv(path, index=False)
    tickets[320:].drop(columns="queue").to_csv(folder / "new.csv", index=False)


def make_folder(root: Path) -> Path:
    root.mkdir()
    shutil.copytree(ROOT / "experiment_configs", root / "experiment_configs")
    write_rows(root)
    (root / "home").mkdir()
    return root


def run(folder: Path, script: str, seconds: float) -> None:
    """Run a script as the shell of a user does whose environment is activated; what it started ends with it."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1"}
    with (folder / "output").open("w+") as output:
        process = subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)  # a service that a page starts and does not end, too
    said = (folder / "output").read_text()[-6000:]
    assert code == 0, f"{'too slow' if code is None else f'exit code {code}'}:\n{said}"


def run_blocks(folder: Path, chosen: Sequence[Block], seconds: float) -> None:
    parts = [f"echo '### {one.page}, line {one.line}'\n{one.text}" for one in chosen]
    run(folder, "\n".join(parts), seconds)


@pytest.fixture(scope="session")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the studies that the pages speak of, small ones, made by the commands that the pages name."""
    folder = make_folder(tmp_path_factory.mktemp("finished") / "work")
    demo = "experiment_configs/studies/demo.yml"
    shrink_demo(folder / demo)
    new = "bertnas new tickets.yml --data data/tickets.csv --text subject body --label queue --speedup 10"
    run(folder, f"bertnas run {demo} --quiet\n{new}\nbertnas run tickets.yml --quiet", LONG_SECONDS)
    return folder


@pytest.mark.parametrize("page", QUICK_PAGES)
def test_the_commands_of_a_page_run(page: str, tmp_path: Path) -> None:
    run_blocks(make_folder(tmp_path / "work"), QUICK[page], QUICK_SECONDS)


@pytest.mark.long
@pytest.mark.timeout(2 * LONG_SECONDS + 60)
@pytest.mark.parametrize("page", LONG_PAGES)
def test_the_long_commands_of_a_page_run(page: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    text = "".join(one.text for one in LONG[page])
    for what, package in EXTRAS.items():
        if what in text:
            pytest.importorskip(package)
    folder = make_folder(tmp_path / "work")
    if "demo" in text or "tickets" in text:
        studies = request.getfixturevalue("studies")  # minutes, which other pages need not wait for
        shutil.copytree(studies / "runs", folder / "runs")
        shutil.copytree(studies / "experiment_configs", folder / "experiment_configs", dirs_exist_ok=True)
    run_blocks(folder, LONG[page], LONG_SECONDS)


@pytest.mark.parametrize("page", TEXTS)
def test_all_commands_stand_in_blocks_that_are_run(page: str) -> None:
    text = TEXTS[page]
    fences = list(FENCE.finditer(text))
    assert text.count("\n```") == 2 * len(fences), "a fence is not closed, or is indented"
    for one in fences:
        assert one["language"], f"say what it is in: {one[0]}"
        assert one["language"] == "bash" or not COMMAND.search(one["text"]), one[0]
    outside = FENCE.sub("", text)
    assert not re.search(r"^(?: {4}|\t)" + COMMAND.pattern[1:], outside, re.MULTILINE), "indented commands"
    assert not re.search(r"^\s*<!-- run", outside, re.MULTILINE), "a mark stands right above a block"
    assert all(MARK.fullmatch(one.mark) for one in BLOCKS[page] if one.mark)
    assert text.count("\n<!-- run: long -->\n") == sum(one.mark == "long" for one in LONG[page])


def test_long_and_quick_ones_are_there() -> None:
    assert {"README.md", "tutorial.md", "pairs.md", "data.md", "cluster.md"} <= set(QUICK_PAGES)
    assert {"README.md", "tutorial.md", "pairs.md", "report.md", "stages.md", "watching.md"} <= set(LONG_PAGES)
    marks = [one.mark for found in BLOCKS.values() for one in found if one.mark.startswith("no")]
    assert len(marks) < sum(map(len, LONG.values())) / 2, "most commands can be run"
