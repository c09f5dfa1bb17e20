"""A study as jobs of Slurm: which there are, what their scripts say and do. With a real Slurm: tests/integration."""

import json
import os
import re
import shlex
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
from tiny import tiny_run

from nni_bertnas.cli import main
from nni_bertnas.config import DevicesSettings, to_yaml
from nni_bertnas.config.cluster import JOBS, ClusterProfile, JobSettings
from nni_bertnas.errors import ConfigError, PhaseError
from nni_bertnas.launch.slurm import Job, make_jobs, spell_script, submit, write_jobs
from nni_bertnas.report.status import read_status
from nni_bertnas.stages.outline import make_outline
from nni_bertnas.stages.run import Run
from nni_bertnas.study_files import load_settings, load_study
from nni_bertnas.tracking.histories import HISTORY, read_state, this_process, write_state
from nni_bertnas.tracking.slurm import Task, read_jobs

EXAMPLE = Path(__file__).parents[2] / "experiment_configs" / "slurm" / "cluster.yml"
KEY = "0123456789abcdef-a-key"


def options(script: str) -> dict[str, str]:
    """What sbatch is told, quotes taken off as it does."""
    lines = re.findall(r"^#SBATCH (.*)$", script, re.MULTILINE)
    words = [shlex.split(line) for line in lines]
    assert all(len(one) == 1 for one in words)
    parts = (one[0].removeprefix("--").partition("=") for one in words)
    return {name: value for name, _, value in parts}


def write(run: Run, **profile: object) -> dict[str, str]:
    """The texts of all scripts by name, each of them right for bash."""
    folder = write_jobs(run, ClusterProfile(**profile))  # type: ignore[arg-type]
    paths = sorted([*folder.glob("*.sbatch"), folder / "submit.sh"])
    for path in paths:
        subprocess.run(["bash", "-n", str(path)], check=True)
    return {path.stem: path.read_text() for path in paths}


def test_jobs_and_what_they_are_after(tmp_path: Path) -> None:
    jobs = make_jobs(tiny_run(tmp_path, cell={"depths": [1, 2, 3]}))
    assert [(job.name, job.stages, job.units, job.after) for job in jobs] == [
        ("prepare", ("teacher", "features"), 1, ()),
        ("cell", ("cell",), 6, ("prepare",)),
        ("block", ("block",), 2, ("cell",)),
        ("supernet", ("supernet",), 1, ("block",)),
        ("report", (), 1, ("supernet",)),
    ]
    everything = tiny_run(
        tmp_path, cell={"losses": {"hidden_mse": 1.0, "probe": 0.1}}, general={"rows": 20}, augment={"copies": 1},
        supernet={"students": 3}, baseline={"students": {"random": 2}},
    )  # fmt: skip
    jobs = make_jobs(everything)
    assert [job.name for job in jobs] == list(JOBS)
    found = {job.name: job for job in jobs}
    assert found["prepare"].stages == ("teacher", "features", "general", "probes")
    assert found["rows"].stages == ("masked_lm", "augment") and found["rows"].after == ("prepare",)
    assert set(found["supernet"].after) == {"block", "rows"}
    # Latency is measured in these: none beside another, one task at a time.
    assert found["frontier"].after == ("supernet",) and found["baselines"].after == ("frontier",)
    assert [(job.units, job.in_turn) for job in (found["frontier"], found["baselines"])] == [(3, True), (2, True)]
    assert found["report"].after == ("baselines",)


def test_what_scripts_ask_for(tmp_path: Path) -> None:
    keys = tmp_path / "my keys"
    keys.write_text(f"WANDB_API_KEY={KEY}\n")
    keys.chmod(0o600)
    run = tiny_run(tmp_path / "a b%'c", cell={"depths": [1, 2, 3]})
    texts = write(
        run, hours=8, cpus=6, memory_gib=1.5, account="me", qos="high", mail="me@example.org", partition="gpu",
        modules=["cuda/12.4"], setup=["ulimit -c 0"], environment_file=str(keys), options=["--comment=two words"],
        jobs={"prepare": JobSettings(gpus=4, hours=0.1), "cell": JobSettings(at_once=4, options=["--exclusive"])},
    )  # fmt: skip
    assert set(texts) == {"prepare", "cell", "block", "supernet", "report", "submit"}
    prepare, cell = options(texts["prepare"]), options(texts["cell"])
    folder = (run.root / "slurm" / "logs").resolve()
    common = {
        "nodes": "1", "cpus-per-task": "6", "mem": "1536M", "account": "me", "qos": "high", "partition": "gpu",
        "mail-user": "me@example.org", "mail-type": "END,FAIL", "open-mode": "append", "requeue": "",
    }  # fmt: skip
    assert prepare == common | {
        "job-name": "tiny-prepare", "time": "00:06:00", "gres": "gpu:4", "signal": "B:USR1@90",
        "comment": "two words", "output": f"{folder}/prepare-%j.log".replace("b%'c", "b%%'c"),
    }  # fmt: skip
    assert cell == common | {
        "job-name": "tiny-cell", "time": "08:00:00", "array": "0-5%4", "signal": "B:USR1@300", "exclusive": "",
        "output": f"{folder}/cell-%A_%a.log".replace("b%'c", "b%%'c"),
    }  # fmt: skip
    study = run.root.resolve() / "slurm" / "study.yml"
    assert shlex.split(texts["cell"].splitlines()[-1], comments=True)[1:] == [
        "bertnas", "cell", str(study), "--unit", "$SLURM_ARRAY_TASK_ID",
    ]  # fmt: skip
    assert [line for line in texts["prepare"].splitlines() if line.startswith("work bertnas")] == [
        f"work bertnas {name} {shlex.quote(str(study))}" for name in ("teacher", "features")
    ]
    assert load_study(study) == replace(run.study, devices=DevicesSettings(teacher=4, features=4))
    setup = texts["cell"].partition("module load cuda/12.4\nulimit -c 0\n")[2]
    assert setup.startswith(f"set -a; . '{keys}'; set +a\n") and KEY not in "".join(texts.values())
    assert read_state(run.root / HISTORY, "outline")["stages"]["cell"]["at_once"] == 4


SUBMIT = """\
submit prepare
submit cell --dependency=afterok:$prepare --kill-on-invalid-dep=yes
submit block --dependency=afterok:$cell --kill-on-invalid-dep=yes
submit supernet --dependency=afterok:$block --kill-on-invalid-dep=yes
submit report --dependency=afterok:$supernet --kill-on-invalid-dep=yes
mv jobs.txt.new jobs.txt
"""


def test_as_many_processes_make_a_unit_as_its_job_has_gpus(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, devices={"block": 3})
    folder = write_jobs(
        run, ClusterProfile(gpus=1, jobs={"prepare": JobSettings(gpus=4), "supernet": JobSettings(gpus=2)})
    )
    devices = load_study(folder / "study.yml").devices
    assert (devices.teacher, devices.features, devices.cell, devices.block, devices.supernet) == (4, 4, 1, 3, 2)


def stand_in(folder: Path, name: str, script: str) -> None:
    """A command of Slurm that tells what it was given; the real ones are tested in tests/integration/test_slurm.py."""
    path = folder / name
    path.write_text(f"#!/bin/bash\n{script}")
    path.chmod(0o755)


def test_handing_over_tells_slurm_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, told = tiny_run(tmp_path), tmp_path / "told"
    text = write(run)["submit"]
    assert text.endswith(SUBMIT)
    with pytest.raises(PhaseError, match="sbatch is not on this machine"):
        monkeypatch.setenv("PATH", str(tmp_path))
        submit(run.root / "slurm")
    monkeypatch.undo()
    stand_in(tmp_path, "sbatch", f'env >> {told}; echo "$@" >> {told}; echo $((100 + $(wc -l < {told})));\n')
    stand_in(tmp_path, "scancel", f'echo "cancelled $@" >> {told}\n')
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    for name in ("WANDB_API_KEY", "HF_TOKEN", "aws_secret", "DB_PASSWORD"):
        monkeypatch.setenv(name, KEY)
    monkeypatch.setenv("OTHER", "stays")
    numbers = submit(run.root / "slurm")
    said = told.read_text()
    assert KEY not in said and "OTHER=stays" in said
    assert list(numbers) == ["prepare", "cell", "block", "supernet", "report"] and numbers == read_jobs(run.root)
    assert f"--dependency=afterok:{numbers['prepare']} --kill-on-invalid-dep=yes cell.sbatch\n" in said
    stand_in(tmp_path, "sbatch", '[[ "$*" != *block* ]] || { echo "error: no such account" >&2; exit 1; }; echo 7\n')
    with pytest.raises(PhaseError, match=r"none is left in its queue: error: no such account"):
        submit(run.root / "slurm")
    assert "cancelled 7 7\n" in told.read_text()


@pytest.mark.parametrize(
    ("work", "restarts", "code", "requeued"),
    [
        ("true", 0, 0, False),
        ("(exit 2)", 0, 2, False),  # settings are wrong
        ("(exit 1)", 0, 1, True),
        ("(exit 1)", 1, 1, False),  # once more is enough
        ("(kill -KILL $BASHPID)", 0, 137, True),
    ],
)
def test_what_a_script_does_when_work_ends(work: str, restarts: int, code: int, requeued: bool, tmp_path: Path) -> None:
    done = subprocess.run(**start(tmp_path, work, restarts), capture_output=True, text=True, timeout=60)
    assert done.returncode == code, done.stderr
    told = (tmp_path / "told").read_text() if (tmp_path / "told").exists() else ""
    assert told == ("requeue 5_3\n" if requeued else "")


def start(folder: Path, work: str, restarts: int = 0) -> dict:
    """A task's script with other work in the place of ours, ready to be run."""
    setup = [f"bertnas() {{ {work}; }}"]
    script = folder / "cell.sbatch"
    job = Job("cell", ("cell",), 4, False, ("prepare",))
    script.write_text(spell_script("tiny", job, ClusterProfile(setup=setup), folder))
    stand_in(folder, "scontrol", f'echo "$@" >> {folder / "told"}; exit 1\n')  # nobody ends the script then
    slurm = {"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "3", "SLURM_CPUS_PER_TASK": "1"}
    environment = os.environ | slurm | {"SLURM_RESTART_COUNT": str(restarts)}
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    return {"args": ["bash", str(script)], "env": environment | {"PATH": path}}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGUSR1, 1), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_work_cleanly(number: signal.Signals, code: int, tmp_path: Path) -> None:
    work = (
        f"trap 'sleep 0.3; touch {tmp_path}/clean; exit 143' TERM; touch {tmp_path}/begun; while sleep 0.05; do :; done"
    )
    process = subprocess.Popen(**start(tmp_path, work), stdout=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 60
    while not (tmp_path / "begun").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(number)
    assert process.wait(60) == code and (tmp_path / "clean").exists()
    assert (tmp_path / "told").exists() == (number == signal.SIGUSR1)


def test_a_profile_is_read_strictly(tmp_path: Path) -> None:
    profile = load_settings(ClusterProfile, EXAMPLE)
    assert profile.of("prepare").gpus == 2 and profile.of("cell").gpus == 1 and profile.of("report").gpus == 0
    assert profile.of("supernet").cpus == profile.cpus and profile.of("frontier").gpus == 2
    own = ClusterProfile(jobs={"supernet": JobSettings(gpus=2, cpus=9), "baselines": JobSettings(cpus=1)})
    assert (own.of("baselines").gpus, own.of("baselines").cpus, own.of("frontier").cpus) == (2, 1, 9)
    path = tmp_path / "cluster.yml"
    path.write_text("hours: 0\ntime: '04:00:00'\naccount: 'a b'\njobs:\n  cell: {cores: 4}\noptions: ['-p main']\n")
    with pytest.raises(ConfigError) as caught:
        load_settings(ClusterProfile, path)
    text = str(caught.value)
    assert "5 problem(s)" in text and "time: unknown key" in text and "jobs.cell.cores: unknown key" in text
    path.write_text("jobs: {cells: {gpus: 1}}")
    with pytest.raises(ConfigError, match=r"jobs: must be one of prepare, cell, .*got 'cells'"):
        load_settings(ClusterProfile, path)
    path.write_text("")
    assert load_settings(ClusterProfile, path) == ClusterProfile()


def test_a_file_of_keys_is_for_its_owner_alone(tmp_path: Path) -> None:
    run, path = tiny_run(tmp_path), tmp_path / "keys"
    with pytest.raises(ConfigError, match=r"environment_file: .* is not there"):
        write_jobs(run, ClusterProfile(environment_file=str(path)))
    path.write_text("A=1\n")
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        write_jobs(run, ClusterProfile(environment_file=str(path)))
    path.chmod(0o600)
    assert write_jobs(run, ClusterProfile(environment_file=str(path))).is_dir()


def test_the_command_writes_them_and_says_what_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, study = tiny_run(tmp_path), tmp_path / "study.yml"
    study.write_text(to_yaml(run.study))
    assert main(["slurm", str(study), "--profile", str(EXAMPLE)]) == 0
    text = capsys.readouterr().out
    assert re.search(r"block +│ block, 2 tasks +│ cell +│ 4 h, 4 core\(s\), 16 GiB, 1 GPU\(s\)", text), text
    assert f"bash {run.root / 'slurm' / 'submit.sh'}" in text
    assert main(["status", str(study), "--json"]) == 0  # before anything ran
    assert [one["left"] for one in json.loads(capsys.readouterr().out)["stages"]] == [1, 1, 2, 2, 1]


@pytest.mark.parametrize(
    ("states", "alive"), [(["RUNNING"], True), (["PENDING"], False), (["FAILED"], False), ([], False), (None, None)]
)
def test_what_runs_elsewhere_is_asked_of_slurm(states: list[str] | None, alive: bool | None, tmp_path: Path) -> None:
    run = tiny_run(tmp_path)
    working = {**this_process(), "state": "working", "since": time.time(), "study": run.mark, "host": "node42"}
    write_state(run.root / HISTORY, "cell-block0_depth1", working | {"slurm_job": "12"})
    tasks = None if states is None else [Task("11", "12", one, "None") for one in states]
    status = read_status(run.root, make_outline(run), {"cell": "11"}, tasks)
    (cell,) = (one for one in status["stages"] if one["name"] == "cell")
    assert [one["alive"] for one in cell["running"]] == ([] if alive is False else [alive])
    assert len(cell["stopped"]) == (alive is False) and cell["left"] == (2 if alive is False else 1)
    (job,) = status["slurm"]
    assert job["states"] == {one.lower(): 1 for one in states or []} and job["asked"] == (tasks is not None)


def test_one_unit_without_nni(
    built_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("nni_bertnas.cli.stage.quiet_nni", lambda: None)  # it would be for all tests to come
    run, study = tiny_run(built_copy, cell={"epochs": 1}), tmp_path / "study.yml"
    study.write_text(to_yaml(run.study))
    assert main(["cell", str(study), "--unit", "2"]) == 2
    assert "--unit must be 0 to 1, got 2" in capsys.readouterr().err
    assert main(["cell", str(study), "--unit", "1"]) == 0
    assert "cell block1_depth1: score " in capsys.readouterr().out
    assert list(run.results("cell")) == ["block1_depth1"]
    assert not (run.root / "seconds.json").exists(), "the stage's time is not this unit's"
    assert main(["cell", str(study), "--unit", "1"]) == 0
    assert "(reused)" in capsys.readouterr().out
