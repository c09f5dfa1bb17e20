import nni.trial
from nni.runtime import trial_command_channel as channels

from nni_bertnas.launch.channel import NniChannel
from nni_bertnas.tracking.tracker import Tracker


def test_reports_reach_the_outer_channel_while_an_inner_one_is_set() -> None:
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
