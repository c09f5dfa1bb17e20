from pathlib import Path

import pytest
from tiny import tiny_run
from wandb_log import read_offline_runs

from nni_bertnas.tracking import Tracker


@pytest.mark.parametrize("mode", ["offline", "online"])
def test_wandb_run_can_be_read_back(tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)  # so that online falls back
    run = tiny_run(tmp_path, tracking={"wandb": mode})
    with run.tracker("cell", {"block": 0, "depth": 1}) as tracker:
        tracker.epoch({"train_loss": 0.5, "learning_rate": 1e-3}, "train_loss")
        tracker.epoch({"train_loss": 0.25, "learning_rate": 5e-4}, "train_loss")
        tracker.final({"default": 0.3, "num_params": 1234})
    ((found, history),) = read_offline_runs(tmp_path / "runs" / "tiny")
    assert found == {"group": "tiny", "job_type": "cell", "name": "cell-block0_depth1"}
    assert [row["train_loss"] for row in history if "train_loss" in row] == [0.5, 0.25]
    assert history[1]["learning_rate"] == 5e-4
    assert history[2]["final/default"] == 0.3 and history[2]["final/num_params"] == 1234


def test_wandb_is_off_by_default(tmp_path: Path) -> None:
    with tiny_run(tmp_path).tracker("cell", {"block": 0, "depth": 1}) as tracker:
        tracker.epoch({"train_loss": 0.5}, "train_loss")
    assert not list((tmp_path / "runs").rglob("wandb"))


def test_a_failing_wandb_never_stops_a_run(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def log(self, metrics: dict) -> None:
            raise OSError("no network")

    tracker = Tracker(wandb_run=Broken())
    tracker.epoch({"train_loss": 1.0}, "train_loss")
    tracker.final({"default": 1.0})
    assert caplog.text.count("no network") == 1


def test_a_person_sees_epochs_and_progress() -> None:
    class Watcher:
        def __init__(self) -> None:
            self.seen: list = []

        def epoch(self, metrics: dict) -> None:
            self.seen.append(metrics)

        def progress(self, done: int, total: int) -> None:
            self.seen.append((done, total))

    watcher = Watcher()
    tracker = Tracker(watcher=watcher)
    tracker.epoch({"train_loss": 1.0}, "train_loss")
    tracker.progress(3, 4)
    assert watcher.seen == [{"train_loss": 1.0}, (3, 4)]
