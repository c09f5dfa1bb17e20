"""`bertnas run` whose processes are killed by SIGKILL at random moments, and run again: as if nothing had been.

One study is killed BERTNAS_KILLS times (3) at moments drawn from BERTNAS_KILLS_SEED (0), sometimes with NNI's manager
and all trials, sometimes alone, and then made to its end.
"""

import contextlib
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny_run, without_times

from nni_bertnas.config import to_yaml
from nni_bertnas.stages import STAGES
from nni_bertnas.stages.run import Run, unit_name
from nni_bertnas.stages.stage import load, run_study
from nni_bertnas.tracking.histories import HISTORY, read_history, record_name
from nni_bertnas.tracking.logs import LOG

pytestmark = pytest.mark.integration
KILLS, SEED = int(os.environ.get("BERTNAS_KILLS", "3")), int(os.environ.get("BERTNAS_KILLS_SEED", "0"))
MOST_CHANGES = 60 if KILLS <= 3 else 150  # of the study's files, before a kill
MOST_SECONDS = 120.0  # that are waited for them
BLOCKS = range(1 if KILLS <= 3 else 2)
UNITS = [("teacher", {}), ("features", {}), *(("cell", {"block": block, "depth": 1}) for block in BLOCKS),
         *(("block", {"block": block}) for block in BLOCKS), ("supernet", {"seed": 0})]  # fmt: skip


def study(root: Path, name: str) -> Run:
    nni, teacher = {"concurrency": 2, "threads": 1}, {"num_blocks": len(BLOCKS)}
    run = tiny_run(root, name=name, teacher=teacher, block={"start": "cell"}, nni=nni)
    (root / f"{name}.yml").write_text(to_yaml(run.study))
    return run


def start(root: Path, name: str) -> subprocess.Popen:
    """A run that saves each epoch of each training."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "BERTNAS_CHECKPOINT_SECONDS": "0"}
    with (root / "output").open("w") as output:
        return subprocess.Popen(
            [str(Path(sys.executable).with_name("bertnas")), "run", f"{name}.yml", "--quiet"],
            cwd=root, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip


def of_study(root: Path) -> list[psutil.Process]:
    """All processes that work below a folder: the run, NNI's manager, trials and what they are forked from."""
    found = []
    for one in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            text = " ".join(one.cmdline())
            if one.pid != os.getpid() and (str(root) in text or one.cwd() == str(root)):
                found.append(one)
    return found


def wait_until_gone(root: Path, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while left := of_study(root):
        assert time.monotonic() < deadline, [one.cmdline() for one in left if one.is_running()]
        time.sleep(0.2)


def kill_later(process: subprocess.Popen, run: Run, generator: random.Random) -> str:
    """Kill a run when its files have changed so many times, and a moment later; says whom, nobody if it has ended."""
    changes, everybody = generator.randint(0, MOST_CHANGES), generator.random() < 0.5
    moment, deadline, seen = generator.uniform(0, 1), time.monotonic() + MOST_SECONDS, 0
    before = stamps(run)
    while seen < changes and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
        now = stamps(run)
        seen, before = seen + len(now ^ before), now
    time.sleep(moment)
    if process.poll() is not None:
        return ""
    root = run.root.parents[1]
    for one in of_study(root) if everybody else [process]:
        with contextlib.suppress(psutil.Error):
            one.kill()
    process.wait()
    if not everybody:  # all others end by themselves
        wait_until_gone(root, 30)
    return f"after {seen} changes {'all' if everybody else 'the run alone'}"


def stamps(run: Run) -> set[tuple[str, int]]:
    """When a study's files were changed; not of NNI's, logs and locks, which change while nothing is made."""
    found = set()
    for file in run.root.glob("*/**/*"):
        if file.is_relative_to(run.nni):
            continue
        with contextlib.suppress(OSError):
            found.add((str(file), file.stat().st_mtime_ns))
    return found


def finished(run: Run) -> dict[str, int]:
    """When the result of every finished unit was written, in nanoseconds."""
    files = {f"{stage} {unit}": run.folder(stage, unit) / "result.json" for stage, unit in UNITS}
    return {name: file.stat().st_mtime_ns for name, file in files.items() if file.exists()}


def check_equal(one: Run, other: Run) -> None:
    for stage, unit in UNITS:
        results = [run.read(stage, unit) for run in (one, other)]
        assert results[0] and without_times(results[0]) == without_times(results[1]), (stage, unit)
        name = record_name(stage, unit_name(unit))
        lines = [[without_times(line) for line in read_history(run.root / HISTORY, name)] for run in (one, other)]
        assert lines[0] == lines[1], (stage, unit)
        for file in run_files(one.folder(stage, unit)):
            first, second = (run.folder(stage, unit) / file for run in (one, other))
            if file.suffix == ".safetensors":
                weights, others = load_file(first), load_file(second)
                assert weights.keys() == others.keys()
                assert all(torch.equal(weights[key], others[key]) for key in weights), file
            else:
                assert first.read_bytes() == second.read_bytes(), file


def run_files(folder: Path) -> list[Path]:
    """Weights, and what the teacher gave."""
    return sorted(file.relative_to(folder) for kind in ("safetensors", "bin") for file in folder.rglob(f"*.{kind}"))


@pytest.fixture(autouse=True)
def nothing_left(whole: Run) -> Iterator[None]:
    """Whatever a test comes to, none of its processes is left."""
    yield
    for one in of_study(whole.root.parents[1]):
        with contextlib.suppress(psutil.Error):
            one.kill()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The study made without a break, by one thread."""
    run = study(tmp_path_factory.mktemp("kills").resolve(), "whole")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        run_study(run.study)
    finally:
        torch.set_num_threads(threads)
    assert [name for name in STAGES if load(name).units(run)] == list(dict.fromkeys(stage for stage, _ in UNITS))
    return run


@pytest.mark.timeout(600 + 60 * KILLS)
def test_a_run_that_is_killed_again_and_again_comes_to_the_same(whole: Run) -> None:
    root, generator = whole.root.parents[1], random.Random(SEED)
    run, made, told = study(root, "killed"), {}, []  # type: ignore[var-annotated]
    while True:
        process, who = start(root, run.study.name), ""
        if len(told) < KILLS:
            who = kill_later(process, run, generator)
        else:
            process.wait(400)
        now = finished(run)
        assert all(now.get(name) == when for name, when in made.items()), "a finished unit was made again"
        made = now
        if who:
            told.append(f"{who}: {len(made)} of {len(UNITS)} units made")
            print(told[-1], flush=True)
            continue
        assert process.returncode == 0, (root / "output").read_text()[-3000:]
        check_equal(whole, run)
        assert not list(run.root.rglob("*.unfinished")) and not list(run.root.glob("*/.*.????????"))
        if len(told) == KILLS:
            break
        run, made = study(root, f"killed{len(told)}"), {}  # from its beginning
    wait_until_gone(root, 30)


def test_another_manager_goes_on_where_one_is_killed(whole: Run) -> None:
    root = whole.root.parents[1]
    run = study(root, "manager")
    shutil.copytree(whole.root, run.root, ignore=shutil.ignore_patterns("cell", "cell-*", "nni"))
    process, deadline = start(root, "manager"), time.monotonic() + 120
    while (
        not (managers := [one for one in of_study(root) if any("main.js" in part for part in one.cmdline())])
        or not (run.root / HISTORY / record_name("cell", "block0_depth1.jsonl")).exists()
    ):
        assert time.monotonic() < deadline and process.poll() is None, (root / "output").read_text()
        time.sleep(0.1)
    managers[0].kill()
    assert process.wait(180) == 0, (root / "output").read_text()
    said = (run.root / LOG).read_text()
    assert said.count("NNI's manager has ended with code -9") == 1 and "Traceback" not in said, said
    assert "Traceback" not in (root / "output").read_text()
    check_equal(whole, run)
    wait_until_gone(root, 30)
