"""Histories and states of units: what is in them, and that nothing of them stops a run."""

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from tiny import Keeper, tiny_run

from nni_bertnas.stages.run import Run, unit_name
from nni_bertnas.stages.stage import ensure
from nni_bertnas.tracking.histories import (
    HISTORY,
    Record,
    history_file,
    is_alive,
    last_epoch,
    read_history,
    read_state,
    record_name,
    seconds_since,
    this_process,
)
from nni_bertnas.tracking.tracker import Tracker


def without(lines: list[dict]) -> list[dict]:
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def made_with_keeper(run: Run, stage: str, unit: dict) -> Keeper:
    """Make a unit, and give what its books were told."""
    keeper = Keeper()
    ensure(run, stage, unit, Tracker(books=[run.record(stage, unit), keeper]))
    return keeper


def test_the_history_of_every_training_is_what_its_tracker_got(built_copy: Path) -> None:
    run = tiny_run(
        built_copy, block={"candidates": 2, "epochs": 2}, supernet={"epochs": 2, "bag": True, "finalists": 2},
        general={"rows": 40, "epochs": 2, "cells": 20}, baseline={"students": {"uniform": 1}},
        augment={"copies": 1, "fit_epochs": 2},
    )  # fmt: skip
    run.discard_from("teacher")
    counts = {}
    units: list[tuple[str, dict]] = [
        ("teacher", {}), ("features", {}), ("general", {}), ("masked_lm", {}), ("augment", {}),
        ("cell", {"block": 0, "depth": 1}), ("cell", {"block": 1, "depth": 1}), ("block", {"block": 0}),
        ("block", {"block": 1}),
        ("supernet", {"seed": 0}), ("baselines", {"seed": 0, "student": "uniform_0"}),
    ]  # fmt: skip
    for stage, unit in units:
        kept = made_with_keeper(run, stage, unit).kept
        name = record_name(stage, unit_name(unit))
        lines = read_history(run.root / HISTORY, name)
        assert without(lines) == kept
        seconds = [line["seconds"] for line in lines]
        assert seconds == sorted(seconds)
        assert read_state(run.root / HISTORY, name)["state"] == "done"
        counts[name] = len(lines)
        if stage == "cell":
            assert any(key.startswith("probability/layer_0/") for key in lines[0])
        if stage == "supernet":
            parts = [{key.partition("/")[0] for key in line if key.endswith("train_loss")} for line in lines]
            own, finalist, general = ({"train_loss"}, {"finalist0"}, {"general"})
            assert parts.count(own) == parts.count(finalist) == parts.count(general) == 2
            assert any({"bag"} == part for part in parts) or not any(run.read("supernet", unit)["depths"])
        if stage == "baselines":
            names = {key for line in lines for key in line if key.endswith("train_loss")}
            assert {"train_loss", "cell0/train_loss", "cell1/train_loss", "block0/train_loss"} <= names
    assert counts["teacher"] == 3 and counts["masked_lm"] == 2
    assert counts["features"] == counts["general"] == counts["augment"] == 0
    assert counts["block-block0"] >= 2 and counts["cell-block0_depth1"] >= 2


def test_a_unit_that_is_begun_anew_has_a_new_history_and_one_that_stands_keeps_its_own(built_copy: Path) -> None:
    run = tiny_run(built_copy)
    run.discard_from("teacher")
    ensure(run, "teacher")
    first = history_file(run.root / HISTORY, "teacher").read_text()
    state = read_state(run.root / HISTORY, "teacher")
    ensure(run, "teacher")
    assert history_file(run.root / HISTORY, "teacher").read_text() == first
    assert read_state(run.root / HISTORY, "teacher") == state
    other = tiny_run(built_copy, tracking={"project": "other"})  # changes nothing that a teacher depends on
    ensure(other, "teacher")
    again = read_state(run.root / HISTORY, "teacher")
    assert again == {**state, "state": "reused", "study": other.mark} and other.mark != run.mark
    run.discard_from("teacher")
    ensure(run, "teacher")
    assert len(read_history(run.root / HISTORY, "teacher")) == len(first.splitlines()) == 3
    assert history_file(run.root / HISTORY, "teacher").read_text() != first


def test_a_folder_that_cannot_be_written_stops_nothing(built_copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = tiny_run(built_copy)
    run.discard_from("teacher")
    for path in (run.root / HISTORY).glob("*"):
        path.unlink()
    for path in (run.root / HISTORY).glob(".*"):
        path.unlink()
    if (run.root / HISTORY).is_dir():
        (run.root / HISTORY).rmdir()
    (run.root / HISTORY).write_text("a file in its place")
    try:
        assert ensure(run, "teacher")["fine_tuned"]
    finally:
        (run.root / HISTORY).unlink()
    assert caplog.text.count("the history of teacher is not written") == 1


def test_a_stopped_unit_says_so(tmp_path: Path) -> None:
    run = tiny_run(tmp_path)
    tracker = Tracker(books=[run.record("cell", {"block": 0, "depth": 1})])
    with pytest.raises(KeyboardInterrupt), tracker.working():
        tracker.epoch({"epoch": 0, "train_loss": float("inf")}, "train_loss")
        assert is_alive(read_state(run.root / HISTORY, "cell-block0_depth1"))
        raise KeyboardInterrupt
    state = read_state(run.root / HISTORY, "cell-block0_depth1")
    assert state["state"] == "stopped" and state["seconds"] >= 0
    assert last_epoch(run.root / HISTORY, "cell-block0_depth1")["train_loss"] is None  # JSON has no infinity


def test_another_process_reads_while_one_writes(tmp_path: Path) -> None:
    record = Record(tmp_path, "cell-block0_depth1", "mark")
    record.begin()
    record.epoch({"epoch": 0, "train_loss": 0.5})
    with history_file(tmp_path, "cell-block0_depth1").open("a") as file:
        file.write('{"epoch": 1, "train_lo')  # half a line
    assert [line["train_loss"] for line in read_history(tmp_path, "cell-block0_depth1")] == [0.5]
    assert last_epoch(tmp_path, "cell-block0_depth1")["train_loss"] == 0.5
    assert last_epoch(tmp_path, "none") is None and read_history(tmp_path, "none") == []


def test_whether_a_process_is_there() -> None:
    own = this_process()
    assert is_alive(own) is True
    assert is_alive({**own, "created": own["created"] - 60}) is False  # another one has its number now
    assert is_alive({**own, "host": "elsewhere"}) is None
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert is_alive({**own, "pid": ended.pid}) is False


def test_names_of_files() -> None:
    assert record_name("teacher", "") == "teacher" and record_name("cell", "block0_depth1") == "cell-block0_depth1"
    long = [record_name("cell", "x" * 300 + end) for end in "ab"]
    assert len(set(long)) == 2 and max(map(len, long)) < 200 and "/" not in record_name("cell", "a/b")


@pytest.mark.parametrize("jump", [-7200.0, 7200.0, 1e9])
def test_a_clock_that_is_set_changes_no_span_and_kills_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jump: float
) -> None:
    record = Record(tmp_path, "teacher", "mark")
    record.begin()
    record.epoch({"epoch": 0})
    clock, boot = time.time, psutil._psplatform.boot_time
    monkeypatch.setattr(time, "time", lambda: clock() + jump)
    monkeypatch.setattr(psutil._psplatform, "boot_time", lambda: boot() + jump)  # by which Linux tells times
    assert psutil.Process().create_time() == pytest.approx(clock() + jump, abs=36_000)
    state = read_state(tmp_path, "teacher")
    assert is_alive(state) is True and 0 <= seconds_since(state) < 60
    record.end("done")
    assert 0 <= read_state(tmp_path, "teacher")["seconds"] < 60
    assert is_alive({**this_process(), "boot": "another start of the machine"}) is False
