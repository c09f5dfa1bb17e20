"""`bertnas slurm --submit` with a real Slurm: jobs are killed, put back and go on; what comes out is a local run's."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import slurm_cluster
import yaml
from slurm_cluster import Cluster
from tiny import tiny_study_fields, without_times

from nni_bertnas.tracking.histories import HISTORY, read_state
from nni_bertnas.tracking.slurm import read_jobs

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif("BERTNAS_SLURM" not in os.environ, reason="starts a Slurm; as root set BERTNAS_SLURM=1"),
    pytest.mark.timeout(1500),
]
BERTNAS = str(Path(sys.executable).with_name("bertnas"))
KEY = "0123456789abcdef-a-key"
PROFILE = {
    "hours": 0.5, "cpus": 1, "memory_gib": 1.7, "gpus": 1, "jobs": {"prepare": {"gpus": 2}, "report": {"gpus": 0}},
    "setup": ['echo "GPUs: $CUDA_VISIBLE_DEVICES"'],
}  # fmt: skip


@pytest.fixture(scope="module")
def slurm() -> Iterator[Cluster]:
    if absent := slurm_cluster.missing():
        pytest.skip(f"{', '.join(absent)} not there, and not to be installed")
    with slurm_cluster.cluster() as found:
        yield found


def write_study(root: Path, runs: str, **changes: Any) -> Path:
    """The tiny study; every unit on one thread, wherever it is made."""
    fields = {**tiny_study_fields(root), "runs_dir": str(root / runs), **changes}
    fields["nni"] = {"concurrency": 2, "threads": 1}
    path = root / f"{runs}.yml"
    path.write_text(yaml.safe_dump(fields))
    return path


def call(root: Path, environment: dict[str, str], *arguments: str) -> str:
    done = subprocess.run(
        [BERTNAS, *arguments], cwd=root, env={**environment, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def submit(root: Path, slurm: Cluster, study: Path, profile: dict[str, Any]) -> dict[str, str]:
    (root / "cluster.yml").write_text(yaml.safe_dump(profile))
    environment = {**slurm.environment, "WANDB_API_KEY": KEY}
    call(root, environment, "slurm", str(study), "--profile", "cluster.yml", "--submit")
    return read_jobs(root / study.stem / "tiny")


def wait(what: Callable[[], Any], seconds: float = 240) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.05)
    return found


def working(run: Path, name: str) -> Callable[[], dict[str, Any] | None]:
    """The state of a unit once a process works on it."""

    def look() -> dict[str, Any] | None:
        state = read_state(run / HISTORY, name)
        return state if state.get("state") == "working" else None

    return look


def results(run: Path) -> dict[str, Any]:
    """All results, and the bytes of all weights and stored features."""
    texts = {
        str(path.relative_to(run)): without_times(json.loads(path.read_text())) for path in run.glob("*/**/result.json")
    }
    files = [*run.glob("*/**/*.safetensors"), *run.glob("features/*/*.bin"), *run.glob("features/*/*.npy")]
    return texts | {str(path.relative_to(run)): path.read_bytes() for path in files}


def times_made(run: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in run.glob("*/**/result.json")}


def statuses(root: Path, slurm: Cluster, study: Path) -> tuple[dict[str, Any], dict[str, dict[str, int]]]:
    """Stages by name, and the states of Slurm's jobs by name."""
    status = json.loads(call(root, slurm.environment, "status", str(study), "--json"))
    return {one["name"]: one for one in status["stages"]}, {one["job"]: one["states"] for one in status["slurm"]}


def test_killed_and_put_back_it_gives_what_a_local_run_gives(slurm: Cluster, tmp_path: Path) -> None:
    study, run = write_study(tmp_path, "jobs"), tmp_path / "jobs" / "tiny"
    jobs = submit(tmp_path, slurm, study, PROFILE)
    assert list(jobs) == ["prepare", "cell", "block", "supernet", "report"]

    wait(working(run, "teacher"))
    slurm.ask("scontrol", "requeue", jobs["prepare"])  # as a preempted job, or one whose node went down
    wait(lambda: slurm.states(jobs["prepare"]) == ["PENDING"])
    stages, states = statuses(tmp_path, slurm, study)
    assert stages["teacher"]["left"] == 1 and not stages["teacher"]["running"]
    assert states["prepare"] == {"pending": 1} and states["cell"] == {"pending": 2}

    last = f"{jobs['cell']}_1"  # the array's last task, which has its number
    before = wait(working(run, "cell-block1_depth1"))
    slurm.ask("scancel", "--batch", "--signal=USR1", last)  # as before the end of its time
    wait(lambda: slurm.about(last)["Restarts"] == "1")
    made = times_made(run)
    assert slurm.about(f"{jobs['cell']}_0").get("Restarts", "0") == "0"
    assert before["slurm_job"] == slurm.about(last)["JobId"]

    state = wait(working(run, "block-block0"))
    psutil.Process(state["pid"]).send_signal(signal.SIGKILL)  # as by lack of memory
    wait(lambda: slurm.about(f"{jobs['block']}_0")["Restarts"] == "1")

    wait(working(run, "supernet-seed0"))
    stages, states = statuses(tmp_path, slurm, study)
    assert stages["supernet"]["running"] and states["supernet"] == {"running": 1}, states
    slurm.ask("scancel", "--batch", "--signal=USR1", jobs["supernet"])
    wait(lambda: slurm.states(jobs["report"]) == ["COMPLETED"])

    assert all(set(slurm.states(job)) == {"COMPLETED"} for job in jobs.values())
    stages, states = statuses(tmp_path, slurm, study)
    assert all(one["done"] == one["units"] for one in stages.values())
    now = times_made(run)
    assert made.items() <= now.items(), "a finished unit was made again"
    logs = {path.stem.partition("-")[0]: path.read_text() for path in sorted((run / "slurm" / "logs").iterdir())}
    assert "GPUs: 0,1\n" in logs["prepare"] and "GPUs: 0\n" in logs["supernet"]
    assert "Checkpoint saved" not in "".join(logs.values()) and "srun" not in "".join(logs.values())
    assert "the time is nearly up: job" in logs["supernet"] and (run / "report.html").is_file()
    for folder in (run, slurm.folder):
        assert not [path for path in folder.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]

    local = write_study(tmp_path, "local", devices={"teacher": 2, "features": 2})  # as its job has two GPUs
    call(tmp_path, slurm.environment, "run", str(local))
    ours, theirs = results(run), results(tmp_path / "local" / "tiny")
    assert set(ours) == set(theirs) and len(ours) > 12
    assert not [name for name in ours if ours[name] != theirs[name]]


def test_what_needs_a_failed_job_is_cancelled_and_said(slurm: Cluster, tmp_path: Path) -> None:
    study = write_study(tmp_path, "failing")
    slurm.ask("scontrol", "update", "nodename=localhost", "state=drain", "reason=test")  # nothing starts yet
    jobs = submit(tmp_path, slurm, study, {**PROFILE, "retries": 1})
    with pytest.raises(AssertionError, match="are in Slurm's queue"):  # all of them, twice
        submit(tmp_path, slurm, study, PROFILE)
    (tmp_path / "model" / "model.safetensors").write_bytes(b"damaged")
    slurm.ask("scontrol", "update", "nodename=localhost", "state=resume")
    wait(lambda: slurm.states(jobs["report"]) == ["CANCELLED"])
    assert slurm.states(jobs["prepare"]) == ["FAILED"] and slurm.states(jobs["cell"]) == ["CANCELLED"] * 2
    stages, states = statuses(tmp_path, slurm, study)
    assert states["prepare"] == {"failed": 1} and states["supernet"] == {"cancelled": 1}
    assert not any(one["done"] or one["running"] for one in stages.values())


def test_a_job_whose_time_is_up_begins_anew_and_not_for_ever(slurm: Cluster, tmp_path: Path) -> None:
    teacher = tiny_study_fields(tmp_path)["teacher"] | {"epochs": 100_000}
    study, run = write_study(tmp_path, "endless", teacher=teacher), tmp_path / "endless" / "tiny"
    jobs = submit(tmp_path, slurm, study, {**PROFILE, "hours": 1 / 60, "restarts": 1})
    wait(lambda: slurm.states(jobs["prepare"]) == ["FAILED"], 400)
    assert slurm.about(jobs["prepare"])["Restarts"] == "1"
    (log,) = (run / "slurm" / "logs").iterdir()
    text = log.read_text()
    assert text.count("the time is nearly up: job") == 1 and text.count("interrupted; ") == 2
    assert "error: the time is nearly up, and the job was begun anew 1 time(s) already" in text
    assert not list(run.glob(".teacher.*/")) and not (run / "teacher").exists()
    wait(lambda: slurm.states(jobs["report"]) == ["CANCELLED"])


def test_slurm_takes_all_options_of_a_profile(slurm: Cluster, tmp_path: Path) -> None:
    study = write_study(tmp_path, "options")
    keys = tmp_path / "keys"
    keys.write_text(f"WANDB_API_KEY={KEY}\n")
    keys.chmod(0o600)
    profile = {
        **PROFILE, "account": "a", "partition": "main", "mail": "me@example.org", "modules": ["none"], "at_once": 1,
        "options": ["--exclusive", "--comment=some words"], "environment_file": str(keys),
    }  # fmt: skip
    (tmp_path / "cluster.yml").write_text(yaml.safe_dump(profile))
    call(tmp_path, slurm.environment, "slurm", str(study), "--profile", "cluster.yml")
    scripts = sorted((tmp_path / "options" / "tiny" / "slurm").glob("*.sbatch"))
    assert len(scripts) == 5
    for script in scripts:
        assert KEY not in script.read_text()
        slurm.ask("sbatch", "--test-only", str(script))
