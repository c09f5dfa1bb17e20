"""What is told of work under way, with a clock of the test's own."""

import io
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console
from tiny import tiny_run

from nni_bertnas.report.progress import Level, Teller, Watcher, Work, spell_seconds
from nni_bertnas.report.trials import spell_jobs
from nni_bertnas.stages.stage import load
from nni_bertnas.tracking.histories import HISTORY
from nni_bertnas.tracking.logs import open_log


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def teller(level: Level = "normal", *, terminal: bool = False) -> tuple[Teller, Clock, io.StringIO]:
    clock, file = Clock(), io.StringIO()
    console = Console(file=file, width=120, markup=False, force_terminal=terminal)
    return Teller(console, level, clock), clock, file


def test_without_a_terminal_a_line_comes_at_least_once_a_minute(tmp_path: Path) -> None:
    told, clock, file = teller()
    times = []
    with told.work("cell") as work:
        work.say("2 running, 0 failed", 1, 6)
        work.what = "trials"
        for second in range(600):  # nothing is reported for ten minutes
            clock.now = float(second)
            before = len(file.getvalue())
            told.tick()
            if len(file.getvalue()) > before:
                times.append(second)
    gaps = [later - earlier for earlier, later in zip([0, *times], [*times, 600], strict=True)]
    assert times and max(gaps) <= 60
    assert file.getvalue().splitlines()[0] == ("cell: 1 of 6 trials, 2 running, 0 failed, under way for 30 s")


def test_what_is_said_puts_the_next_line_off() -> None:
    told, clock, file = teller()
    with told.work("teacher"):
        clock.now = 29.0
        told.say("teacher: epoch 1")
        clock.now = 45.0
        told.tick()
        assert file.getvalue() == "teacher: epoch 1\n"
        clock.now = 60.0
        told.tick()
    assert file.getvalue().splitlines()[1:] == ["teacher: under way for 60 s"]


def test_speed_and_time_left_are_of_the_pieces_at_hand() -> None:
    clock = Clock()
    work = Work("features", clock)
    work.update(64, 1000, "rows")  # where an interrupted run was
    clock.now = 10.0
    work.update(264, 1000, "rows", 0.25)
    assert work.rest == "loss 0.250, 20.0 rows/s, 37 s left"
    clock.now = 20.0
    work.update(5, 100, "word pieces")
    clock.now = 21.0
    work.update(10, 100, "word pieces")
    assert str(work) == "features: 10 of 100 word pieces, 5.0 word pieces/s, 18 s left, under way for 21 s"


def test_quiet_says_the_result_alone_and_the_log_has_all(tmp_path: Path) -> None:
    told, clock, file = teller("quiet")
    with open_log(tmp_path / "bertnas.log"), told.work("teacher") as work:
        Watcher(told, work).epoch({"epoch": 0, "train_loss": 0.5})
        clock.now = 31.0
        told.tick()
        told.print("the table")
    assert file.getvalue() == "the table\n"
    log = (tmp_path / "bertnas.log").read_text()
    assert "teacher: epoch 1: train_loss 0.500, 0 s" in log and "under way for 31 s" in log and "the table" in log


def test_verbose_says_every_metric_and_a_terminal_has_a_bar_and_no_lines() -> None:
    metrics = {"epoch": 1, "train_loss": 0.5, "dev_accuracy": 0.75, "learning_rate": 0.001}
    for level, ending in (("normal", ""), ("verbose", ", learning_rate 0.001")):
        told, clock, file = teller(level)  # type: ignore[arg-type]
        with told.work("teacher") as work:
            Watcher(told, work).epoch(metrics)
        assert file.getvalue() == f"teacher: epoch 2: train_loss 0.500, dev_accuracy 0.750{ending}, 0 s\n"
    told, clock, file = teller(terminal=True)
    with told.work("teacher") as work:
        work.update(1, 4, "steps")
        clock.now = 100.0
        told.tick()
    assert "━" in file.getvalue() and "under way" not in file.getvalue()


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (99, "99 s"), (150, "2.5 min"), (7200, "2.0 h")])
def test_times(seconds: float, text: str) -> None:
    assert spell_seconds(seconds) == text


def job(status: str, block: int, score: float | None = None, seconds: float = 0.0) -> SimpleNamespace:
    return SimpleNamespace(
        status=status, startTime=1000, endTime=1000 + 1000 * seconds,
        hyperParameters=[SimpleNamespace(parameters={"depth": 1, "block": block})],
        finalMetricData=[] if score is None else [SimpleNamespace(data={"default": score})],
    )  # fmt: skip


def test_trials_in_words(tmp_path: Path) -> None:
    run = tiny_run(tmp_path)
    run.record("cell", {"block": 2, "depth": 1}).epoch({"epoch": 4, "train_loss": 0.125})
    assert (run.root / HISTORY).is_dir()
    jobs = [
        job("SUCCEEDED", 0, 0.5, 10), job("SUCCEEDED", 1, 0.25, 20), job("RUNNING", 2), job("RUNNING", 3),
        job("FAILED", 4), job("WAITING", 5),
    ]  # fmt: skip
    assert spell_jobs(run, load("cell"), jobs, 6, 2) == (
        "2 running, 1 failed, best 0.2500 (block1_depth1), about 30 s left, block2_depth1 at epoch 5: train_loss 0.125"
    )
    student = job("SUCCEEDED", 0, 0.5)
    student.hyperParameters[0].parameters = {"seed": 0}
    other = job("SUCCEEDED", 0, 0.25)
    other.hyperParameters[0].parameters = {"seed": 1}
    assert "best 0.5000 (seed0)" in spell_jobs(run, load("supernet"), [student, other], 2, 1)
