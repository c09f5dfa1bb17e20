"""How far a run is, of one that is half finished."""

import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console
from tiny import tiny_run

from nni_bertnas.artifacts import write_whole
from nni_bertnas.cli import main
from nni_bertnas.config import to_yaml
from nni_bertnas.errors import ConfigError, PhaseError
from nni_bertnas.report.status import find_root, read_status, show_status
from nni_bertnas.stages.outline import make_outline, write_outline
from nni_bertnas.stages.run import Run
from nni_bertnas.tracking.histories import HISTORY, WEB_UI, Record, history_file, record_name, this_process, write_state


def done(run: Run, stage: str, unit: str, since: float, seconds: float, mark: str | None = None) -> None:
    folder = run.root / stage / unit
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text(json.dumps({"fingerprint": "x", "seconds": 1.0}))
    state = {"state": "done", "since": since, "seconds": seconds, "study": mark or run.mark}
    write_state(run.root / HISTORY, record_name(stage, unit), state)


@pytest.fixture
def half(tmp_path: Path) -> Run:
    """Teacher and features are there, of six cells three; one is under way, one was killed, one waits."""
    run = tiny_run(tmp_path, cell={"depths": [1, 2, 3]}, nni={"concurrency": 2})
    write_outline(run)
    now = time.time()
    done(run, "teacher", "", now - 1000, 100, mark="before")  # of other settings
    done(run, "features", "", now - 900, 50)
    done(run, "cell", "block0_depth1", now - 800, 60)
    done(run, "cell", "block0_depth2", now - 770, 60)  # beside it
    done(run, "cell", "block0_depth3", now - 700, 90)
    working = Record(run.root / HISTORY, "cell-block1_depth1", run.mark)
    working.begin()
    working.epoch({"epoch": 0, "train_loss": 0.5})
    working.epoch({"epoch": 1, "train_loss": 0.25})
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    killed = {"state": "working", "since": now - 300, "study": run.mark, **this_process(), "pid": ended.pid}
    write_state(run.root / HISTORY, "cell-block1_depth2", killed)
    write_whole(
        history_file(run.root / HISTORY, "cell-block1_depth2"), '{"epoch": 0, "seconds": 20, "train_loss": 1}\n'
    )
    write_whole(run.root / "seconds.json", json.dumps({"teacher": 111.0, "features": 22.0}))
    (run.root / "features" / "data.bin").write_bytes(bytes(5000))
    write_state(run.root / HISTORY, WEB_UI, {"stage": "cell", "address": "http://127.0.0.1:8080", **this_process()})
    return run


def test_every_stage_of_a_half_finished_run(half: Run) -> None:
    status = read_status(half.root, make_outline(half))
    stages = {one["name"]: one for one in status["stages"]}
    assert list(stages) == ["teacher", "features", "cell", "block", "supernet"]
    cell = stages["cell"]
    assert (cell["units"], cell["done"], len(cell["running"]), cell["left"]) == (6, 3, 1, 2)
    (running,), (stopped,) = cell["running"], cell["stopped"]
    assert (running["unit"], running["alive"], running["epoch"], running["loss"]) == ("block1_depth1", True, 1, 0.25)
    assert (stopped["unit"], stopped["alive"], stopped["seconds"]) == ("block1_depth2", False, 20)
    # [0, 90] of two beside each other, 90 of the third, 20 of the killed one, some moments of the running one
    assert cell["seconds"] == pytest.approx(90 + 90 + 20, abs=5)
    # units take 70 s on average: two wait and one has just begun, two at a time
    assert cell["seconds_left"] == pytest.approx((70 + 2 * 70) / 2, abs=5)
    teacher = stages["teacher"]
    assert (teacher["done"], teacher["other_settings"], teacher["left"]) == (0, 1, 0)
    assert stages["features"]["seconds"] == 50 and stages["block"]["left"] == 2
    assert stages["block"]["seconds_left"] is None and stages["block"]["seconds"] is None
    assert status["seconds_left"] is None  # nothing is known of stages to come
    assert status["web_ui"] == "http://127.0.0.1:8080"
    assert 5000 < status["disk_bytes"]["features"] < 5100


def test_people_read_it(half: Run) -> None:
    console = Console(file=io.StringIO(), width=120, markup=False)
    show_status(read_status(half.root, make_outline(half)), console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for part in (
        "3 of 6", "0 of 1 (+1)", "cell block1_depth1: running since ", ", epoch 2, loss 0.2500",
        "cell block1_depth2: stopped, begun at ", "no process works on it", "NNI's web UI: http://127.0.0.1:8080",
        "made with other settings",
    ):  # fmt: skip
        assert part in text, text


def test_the_web_ui_of_a_trial_that_nnictl_started(half: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    write_state(half.root / HISTORY, WEB_UI, {"address": "http://127.0.0.1:1", **this_process(), "created": 0})  # old
    monkeypatch.setenv("HOME", str(half.root.parent))
    monkeypatch.setenv("NNI_EXP_ID", "abcd1234")
    Record(half.root / HISTORY, "cell-block1_depth1", half.mark).begin()
    assert read_status(half.root, make_outline(half))["web_ui"] is None
    experiments = half.root.parent / "nni-experiments"
    experiments.mkdir()
    known = {"abcd1234": {"id": "abcd1234", "port": 18123, "pid": os.getpid(), "status": "RUNNING"}}
    (experiments / ".experiment").write_text(json.dumps(known))
    assert read_status(half.root, make_outline(half))["web_ui"] == "http://127.0.0.1:18123"


def listing(root: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in root.rglob("*")}


def test_the_command_is_quick_and_touches_nothing(half: Run, tmp_path: Path) -> None:
    study = tmp_path / "study.yml"
    study.write_text(to_yaml(half.study))
    before = listing(half.root)
    script = (
        "import sys; from nni_bertnas.cli import main; main(['status', sys.argv[1], '--json']);"
        "assert not {'torch', 'nni', 'transformers', 'pydantic'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(study)], cwd=Path(__file__).parents[2], capture_output=True, text=True,
        check=False, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [one["done"] for one in json.loads(done.stdout)["stages"]] == [0, 1, 3, 0, 0]
    assert listing(half.root) == before


def test_a_run_without_a_plan_is_worked_out(half: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (half.root / HISTORY).glob(".*"):
        path.unlink()
    study = tmp_path / "study.yml"
    study.write_text(to_yaml(half.study))
    assert main(["status", str(study), "--json"]) == 0
    found = {one["name"]: one for one in json.loads(capsys.readouterr().out)["stages"]}
    assert found["cell"]["done"] == 3 and found["cell"]["left"] == 3 and found["teacher"]["seconds"] == 111.0


def test_what_is_no_study_or_not_begun(tmp_path: Path) -> None:
    study = tmp_path / "study.yml"
    study.write_text(f"name: none\nruns_dir: {tmp_path}\n")
    with pytest.raises(PhaseError, match="bertnas run"):
        find_root(study)
    study.write_text("- a list")
    with pytest.raises(ConfigError, match="bertnas validate"):
        find_root(study)
