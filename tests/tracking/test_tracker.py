import json
from pathlib import Path

import pytest
from tiny import Keeper, tiny_run
from wandb_log import read_artifacts, read_offline_runs

from nni_bertnas.stages.cells import table
from nni_bertnas.tracking.event_files import EventFiles, of_trial
from nni_bertnas.tracking.tracker import Tracker


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


def test_candidates_are_a_table_and_a_student_an_artifact_without_network(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    run = tiny_run(tmp_path, tracking={"wandb": "offline", "wandb_artifact": True})
    one = {"space": "layers", "depth": 1, "architecture": {"layer_0": "zero"}, "score": 0.25, "num_params": 12}
    rows = table({"candidates": [one, {**one, "score": 0.5}]})
    student = tmp_path / "student"
    student.mkdir()
    (student / "config.json").write_text("{}")
    with run.tracker("block", {"block": 0}) as tracker:
        tracker.table("candidates", rows)
        tracker.artifact("tiny-student", student, {"num_params": 12})
    (file,) = run.root.glob("wandb/offline-run-*/files/media/table/*.json")
    written = json.loads(file.read_text())
    columns = written["columns"]
    assert [line[columns.index("score")] for line in written["data"]] == [0.25, 0.5]
    assert written["data"][0][columns.index("architecture")] == "zero"
    assert set(read_artifacts(run.root)["tiny-student"]) == {"config.json"}


def test_event_files_hold_every_metric_and_begin_anew(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    files = EventFiles(tmp_path / "unit")
    files.begin()
    files.epoch({"epoch": 0, "train_loss": 9.0})
    files.begin()  # anew
    for loss in (0.5, 0.25):
        files.epoch({"epoch": 7, "train_loss": loss, "probability/layer_0/zero": 0.125, "diverged": float("nan")})
    files.epoch({"epoch": 0, "general/train_loss": 0.75})
    files.end("done")
    files.final({"default": 0.5})
    files.close()
    events = EventAccumulator(str(tmp_path / "unit")).Reload()
    read = {name: [(one.step, one.value) for one in events.Scalars(name)] for name in events.Tags()["scalars"]}
    assert read == {
        "train_loss": [(0, 0.5), (1, 0.25)],
        "probability/layer_0/zero": [(0, 0.125), (1, 0.125)],
        "general/train_loss": [(0, 0.75)],
        "final/default": [(0, 0.5)],
    }


def test_event_files_are_off_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    files = EventFiles(tmp_path / "unit")
    files.begin()
    files.epoch({"train_loss": 0.5})
    files.close()
    assert not (tmp_path / "unit").exists()


def test_event_files_of_a_trial_lie_where_nni_looks(tmp_path: Path) -> None:
    trial = tmp_path / "abc" / "environments" / "local-env" / "trials" / "XyZ"  # of its local service
    assert of_trial(trial) == tmp_path / "abc" / "trials" / "XyZ" / "output" / "tensorboard"
    other = tmp_path / "abc" / "trials" / "XyZ"
    assert of_trial(other) == other / "tensorboard"


def test_parts_of_a_unit_go_by_their_names_and_are_no_curves_of_nni() -> None:
    class Line:
        def __init__(self) -> None:
            self.sent: list = []

        def intermediate(self, value: dict) -> None:
            self.sent.append(value)

        def final(self, value: dict) -> None:
            raise AssertionError("a part has no result")

    line, keeper = Line(), Keeper()
    tracker = Tracker(line, books=[keeper])
    tracker.part("finalist0").part("general").epoch({"epoch": 3, "train_loss": 0.5}, "train_loss")
    tracker.part("bag").final({"default": 1.0})
    tracker.epoch({"epoch": 0, "train_loss": 0.25}, "train_loss")
    assert keeper.kept == [{"epoch": 3, "finalist0/general/train_loss": 0.5}, {"epoch": 0, "train_loss": 0.25}]
    assert line.sent == [{"default": 0.25, "epoch": 0, "train_loss": 0.25}]


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

        def progress(self, done: int, total: int, what: str = "rows", loss: float | None = None) -> None:
            self.seen.append((done, total))

    watcher = Watcher()
    tracker = Tracker(watcher=watcher)
    tracker.epoch({"train_loss": 1.0}, "train_loss")
    tracker.progress(3, 4)
    assert watcher.seen == [{"train_loss": 1.0}, (3, 4)]
