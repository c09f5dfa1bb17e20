"""The three experiment files, as they are, through real nnictl, on real text with a real teacher."""

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny import shrink_demo, tiny_study

from nni_bertnas.config import to_yaml
from nni_bertnas.launch.manager import hold_port
from nni_bertnas.stages.run import Run
from nni_bertnas.study_files import load_study
from search_space.operations import OPERATIONS
from search_space.student import StudentForSequenceClassification

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1800)]
REPOSITORY = Path(__file__).parents[2]
DEADLINE_SECONDS = 900  # of one experiment, on a busy machine


class Project:
    """A folder with the experiment files untouched and a small study in the demo's place."""

    def __init__(self, root: Path, rows: int = 384) -> None:
        self.root = root
        configs = root / "experiment_configs"
        shutil.copytree(REPOSITORY / "experiment_configs", configs)
        self.study_path = configs / "studies" / "demo.yml"
        shrink_demo(self.study_path, rows)
        home = root / "home"
        home.mkdir()
        # `python` in the trial commands is the one of the virtual environment, as when it is activated.
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.environment = {**os.environ, "PATH": path, "HOME": str(home), "HF_HUB_OFFLINE": "1"}

    def nnictl(self, *arguments: str) -> str:
        for _ in range(5):
            done = subprocess.run(
                ["nnictl", *arguments], cwd=self.root, env=self.environment, capture_output=True, text=True, check=False
            )
            # It gives its manager three seconds to answer, which a busy machine does not have.
            if done.returncode == 0 or "check-status" not in done.stderr + done.stdout:
                break
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def run(self, phase: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """One experiment to its end; its trials and their metrics as NNI's REST API gives them."""
        with hold_port(8190) as port:
            pass
        self.nnictl("create", "--config", f"experiment_configs/{phase}.yml", "--port", str(port))
        try:
            deadline = time.monotonic() + DEADLINE_SECONDS
            while (status := get(port, "check-status")["status"]) in (
                "INITIALIZED",
                "RUNNING",
                "NO_MORE_TRIAL",
                "TUNER_NO_MORE_TRIAL",
            ):
                assert time.monotonic() < deadline, f"{phase} is still {status}"
                time.sleep(1)
            return get(port, "trial-jobs"), get(port, "metric-data")
        finally:
            self.nnictl("stop", "--port", str(port))


def get(port: int, what: str) -> Any:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/nni/{what}", timeout=30) as answer:
        return json.load(answer)


def check(jobs: list[dict[str, Any]], metrics: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """Every trial succeeded, with a finite final metric and a curve; returns the final metrics."""
    assert [job["status"] for job in jobs] == ["SUCCEEDED"] * count
    finals = []
    for job in jobs:
        own = [metric for metric in metrics if metric["trialJobId"] == job["trialJobId"]]
        values = {
            kind: [json.loads(json.loads(m["data"])) for m in own if m["type"] == kind]
            for kind in ("PERIODICAL", "FINAL")
        }
        assert len(values["FINAL"]) == 1 and len(values["PERIODICAL"]) >= 1, job["trialJobId"]
        for value in values["FINAL"] + values["PERIODICAL"]:
            assert all(isinstance(number, int | float) and abs(number) < float("inf") for number in value.values())
        finals.append(values["FINAL"][0])
    return finals


def test_the_three_experiments_end_in_a_student_that_loads(tmp_path: Path) -> None:
    project = Project(tmp_path)
    jobs, metrics = project.run("cell")
    finals = check(jobs, metrics, 6)
    assert all(0 < final["default"] < 1 and final["num_params"] > 0 and final["latency_ms"] > 0 for final in finals)
    curves = [json.loads(json.loads(m["data"])) for m in metrics if m["type"] == "PERIODICAL"]
    assert sum("architecture_entropy" in point for point in curves) == 6 * 2  # DARTS, every epoch of every trial

    jobs, metrics = project.run("block")
    assert len(check(jobs, metrics, 3)) == 3

    jobs, metrics = project.run("supernet")
    (final,) = check(jobs, metrics, 1)
    assert final["default"] > 0.5 and final["speedup"] > 1

    run = Run(load_study(project.study_path))
    folder = project.root / run.folder("supernet", {"seed": 0}) / "student"
    student = StudentForSequenceClassification.from_pretrained(folder).eval()
    assert student(torch.tensor([[101, 2307, 3185, 102]])).logits.isfinite().all()
    assert sum(parameter.numel() for parameter in student.parameters()) == final["num_params"]


@pytest.mark.long
def test_every_trial_is_one_architecture_and_the_best_are_ranked(tmp_path: Path) -> None:
    project = Project(tmp_path, rows=96)
    fields = yaml.safe_load(project.study_path.read_text())
    fields["cell"] |= {"depths": [2]}
    project.study_path.write_text(yaml.safe_dump(fields))
    for name, old, new in (
        ("cell_random", "maxTrialNumber: 20", "maxTrialNumber: 3"),
        ("block", "maxTrialNumber: 3", "maxTrialNumber: 1"),
        ("block", "_value: [0, 1, 2]", "_value: [0]"),
    ):
        path = tmp_path / "experiment_configs" / f"{name}.yml"
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))
    jobs, metrics = project.run("cell_random")
    finals = check(jobs, metrics, 3)
    tried = {}
    for job, final in zip(jobs, finals, strict=True):
        (parameters,) = job["hyperParameters"]
        tried[tuple(json.loads(parameters)["parameters"].values())] = final["default"]
    assert len(tried) == 3 and all(set(names) <= set(OPERATIONS) and len(names) == 2 for names in tried)
    run = Run(load_study(project.study_path))
    folder = project.root / run.folder("cell", {"block": 0, "depth": 2})
    ranking = json.loads((folder / "result.json").read_text())["candidates"]
    ranked = {tuple(one["architecture"].values()): one["score"] for one in ranking}
    assert list(ranked.values()) == sorted(tried.values())[:2]
    assert all(tried[names] == score for names, score in ranked.items())
    (final,) = check(*project.run("block"), 1)  # goes on from the ranking
    assert 0 < final["default"] < 1


@pytest.mark.long
def test_a_stopped_experiment_is_resumed_where_it_was(tmp_path: Path) -> None:
    project = Project(tmp_path)
    study = tiny_study(tmp_path, cell={"depths": [1, 2]}, nni={"concurrency": 2, "threads": 1})
    project.study_path.write_text(to_yaml(study))
    path = tmp_path / "experiment_configs" / "cell.yml"
    path.write_text(
        path.read_text()
        .replace("_value: [0, 1, 2]", "_value: [0, 1]")
        .replace("maxTrialNumber: 6", "maxTrialNumber: 4")
    )
    run = Run(load_study(project.study_path))
    with hold_port(8190) as port:
        project.nnictl("create", "--config", str(path), "--port", str(port))
        try:
            await_status(port, lambda: count(port, "SUCCEEDED") >= 1)
            experiment = get(port, "experiment")["id"]
        finally:
            project.nnictl("stop", "--port", str(port))
        made = {file: file.stat().st_mtime_ns for file in run.root.glob("*/**/result.json")}
        assert 3 <= len(made) < 6  # teacher, features, and not all cells
        project.nnictl("resume", experiment, "--port", str(port))
        try:
            await_status(port, lambda: get(port, "check-status")["status"] == "DONE")
            jobs = get(port, "trial-jobs")
        finally:
            project.nnictl("stop", "--port", str(port))
    units = [json.loads(job["hyperParameters"][0])["parameters"] for job in jobs if job["status"] == "SUCCEEDED"]
    assert sorted((unit["block"], unit["depth"]) for unit in units) == [(0, 1), (0, 2), (1, 1), (1, 2)]
    assert sorted(run.results("cell")) == [f"block{block}_depth{depth}" for block in (0, 1) for depth in (1, 2)]
    assert {file: file.stat().st_mtime_ns for file in made} == made  # nothing was made again


def count(port: int, status: str) -> int:
    return sum(job["status"] == status for job in get(port, "trial-jobs"))


def await_status(port: int, arrived: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not arrived():
        assert time.monotonic() < deadline, get(port, "trial-jobs")
        time.sleep(0.2)
