from pathlib import Path

import pytest
from conftest import tiny_study
from wandb_log import read_offline_runs

from nni_bertnas.tracking import NniChannel, Tracker, open_tracker


@pytest.mark.parametrize("mode", ["offline", "online"])
def test_wandb_run_can_be_read_back(tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)  # so that online falls back
    study = tiny_study(tmp_path, tracking={"wandb": mode})
    with open_tracker(study, "cell", "block0_depth1") as tracker:
        tracker.epoch({"train_loss": 0.5, "learning_rate": 1e-3}, "train_loss")
        tracker.epoch({"train_loss": 0.25, "learning_rate": 5e-4}, "train_loss")
        tracker.final({"default": 0.3, "num_params": 1234})
    ((run, history),) = read_offline_runs(tmp_path / "runs" / "tiny")
    assert run == {"group": "tiny", "job_type": "cell", "name": "cell-block0_depth1"}
    assert [row["train_loss"] for row in history if "train_loss" in row] == [0.5, 0.25]
    assert history[1]["learning_rate"] == 5e-4
    assert history[2]["final/default"] == 0.3 and history[2]["final/num_params"] == 1234


def test_wandb_is_off_by_default(tmp_path: Path) -> None:
    study = tiny_study(tmp_path)
    with open_tracker(study, "cell", "x") as tracker:
        tracker.epoch({"train_loss": 0.5}, "train_loss")
    assert not (tmp_path / "runs").exists()


def test_a_failing_wandb_never_stops_a_run(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def log(self, metrics: dict) -> None:
            raise OSError("no network")

    tracker = Tracker(wandb_run=Broken())
    tracker.epoch({"train_loss": 1.0}, "train_loss")
    tracker.final({"default": 1.0})
    assert caplog.text.count("no network") == 1


def test_reports_reach_the_outer_channel_while_an_inner_one_is_set() -> None:
    import nni.trial
    from nni.runtime import trial_command_channel as channels

    class Outer(channels.TrialCommandChannel):
        def __init__(self) -> None:
            self.sent: list[tuple] = []

        def receive_parameter(self) -> dict:
            return {"parameter_id": 7, "parameters": {"block": 1}}

        def send_metric(self, type: str, parameter_id: int, trial_job_id: str, sequence: int, value: dict) -> None:
            self.sent.append((type, parameter_id, sequence, value))

    before = channels.get_default_trial_command_channel()
    outer = Outer()
    try:
        channels.set_default_trial_command_channel(outer)
        channel = NniChannel()
        assert channel.parameters == {"block": 1}
        tracker = Tracker(channel)
        channels.set_default_trial_command_channel(before)  # as the sequential engine does
        nni.trial._params = {"parameter_id": 0, "parameters": None}
        tracker.epoch({"train_loss": 0.5, "probability/layer_0/zero": 0.1}, "train_loss")
        tracker.epoch({"train_loss": 0.4}, "train_loss")
        tracker.final({"default": 0.3})
    finally:
        channels.set_default_trial_command_channel(before)
        nni.trial._params = None
    assert outer.sent == [
        ("PERIODICAL", 7, 0, {"default": 0.5, "train_loss": 0.5}),
        ("PERIODICAL", 7, 1, {"default": 0.4, "train_loss": 0.4}),
        ("FINAL", 7, 0, {"default": 0.3}),
    ]
