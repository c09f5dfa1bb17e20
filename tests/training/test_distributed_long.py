"""Every stage and search by two real processes, against one; minutes, so with BERTNAS_DDP=1 alone."""

import filecmp
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from planted import make_search, make_trainer, plant
from ranked import CLOSE, Paths, alike, averaged_gradients, distil, fail, student_run
from tiny import Recorder, chain_cell, tiny_run, write_tiny_model, write_tiny_task

from nni_bertnas import ranks
from nni_bertnas.config import to_yaml
from nni_bertnas.errors import ConfigError, PhaseError
from nni_bertnas.search.search import Search
from nni_bertnas.search.strategies import STRATEGIES
from nni_bertnas.stages.run import Run
from nni_bertnas.stages.stage import ensure
from nni_bertnas.store import writer

pytestmark = [pytest.mark.ddp, pytest.mark.skipif("BERTNAS_DDP" not in os.environ, reason="minutes; set BERTNAS_DDP=1")]
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model without dropout, and its task."""
    root = tmp_path_factory.mktemp("ddp")
    config = write_tiny_model(root / "model") / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | NO_DROPOUT))
    write_tiny_task(root / "data")
    return root


def both(root: Path, stages: dict[str, dict[str, Any]], **sections: Any) -> tuple[list[Run], list[dict[str, Recorder]]]:
    """Units of stages made by one process, and by two, in a run folder each."""
    runs, recorders = [], []
    for size in (1, 2):
        devices = dict.fromkeys(("teacher", "features", "cell", "block", "supernet"), size)
        runs.append(tiny_run(root, name=f"by_{size}", devices=devices, student={"dropout": 0.0}, **sections))
        recorders.append({stage: Recorder() for stage in stages})
        for stage, unit in stages.items():
            ensure(runs[-1], stage, unit, recorders[-1][stage])
    return runs, recorders


def test_teacher_cell_and_block_of_a_study(root: Path) -> None:
    stages = {"teacher": {}, "features": {}, "cell": {"block": 0, "depth": 1}, "block": {"block": 0}}
    runs, recorders = both(root, stages, cell={"strategy": "darts"}, block={"epochs": 3})
    for stage in ("teacher", "cell", "block"):
        one, two = (recorder[stage].reported for recorder in recorders)
        assert alike(two, one) < CLOSE
    for stage, unit in stages.items():  # how many made it is nothing that a result hangs on
        assert runs[0].read(stage, unit)["fingerprint"] == runs[1].read(stage, unit)["fingerprint"]
    scores = [[one["score"] for one in run.read("block", {"block": 0})["candidates"]] for run in runs]
    np.testing.assert_allclose(scores[1], scores[0], atol=CLOSE)


def test_the_store_is_the_same_to_the_byte(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "_SHARD_TOKENS", 256)
    first = tiny_run(root, name="store_1", features={"dtype": "int8"})
    ensure(first, "features")
    second = tiny_run(root, name="store_2", features={"dtype": "int8"}, devices={"features": 2})
    shutil.copytree(first.folder("teacher"), second.folder("teacher"))
    result = ensure(second, "features")
    assert result["fingerprint"] == first.read("features")["fingerprint"] and first.train.index.num_shards > 5
    for split in ("train", "dev"):
        folders = [run.folder("features") / split for run in (first, second)]
        names = sorted(file.name for file in folders[0].iterdir())
        assert names == sorted(file.name for file in folders[1].iterdir()) and "hidden_1.bin" in names
        assert filecmp.cmpfiles(*folders, names, shallow=False) == (names, [], [])


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return plant(tmp_path_factory.mktemp("planted"), "sequential", 1, {"layer_0": "convolution_3"})


def test_cells_together_and_beside_each_other(stores: Any) -> None:
    found: list[Any] = []
    for size in (1, 2):
        epochs: list[dict[str, float]] = []
        trainer = make_trainer(stores, lambda metrics, to=epochs: to.append(dict(metrics)), epochs=3, batch_size=19)
        torch.manual_seed(0)
        cells = [chain_cell(name, teacher_size=16, hidden_size=16) for name in ("convolution_3", "attention_4")]
        with ranks.together(size, "devices.block"):
            scores = trainer.fit_cells(cells[:1], 3)
            trainer.fit_candidates(cells, 3)
        found.append((epochs, [*scores, *(trainer.score([cell])[0] for cell in cells)]))
    assert len(found[0][0]) == 6 and alike(found[1][0], found[0][0]) < CLOSE
    np.testing.assert_allclose(found[1][1], found[0][1], atol=CLOSE)


@pytest.mark.parametrize("strategy", ["random_one_shot", "darts", "gumbel_darts", "proxyless", "enas"])
def test_a_one_shot_search_has_one_path_over_all_processes(
    strategy: str, stores: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if strategy == "enas":
        pytest.importorskip("tianshou")
    found: dict[int, list[dict[str, float]]] = {1: [], 2: []}
    seen, evaluator = {}, Search.evaluator
    for size, epochs in found.items():
        generator, paths = np.random.RandomState(0), Paths()  # NNI draws by a new one each time
        pl.seed_everything(0, verbose=False)
        monkeypatch.setattr("nni.mutable.mutable.RandomState", lambda generator=generator: generator)
        watched = partial(_watched, evaluator, paths)
        monkeypatch.setattr(Search, "evaluator", lambda search, watched=watched, **options: watched(search, **options))
        search = make_search(
            stores, tmp_path / str(size), strategy, epochs=3, batch_size=19,
            report=lambda metrics, epochs=epochs: epochs.append(dict(metrics)),
        )  # fmt: skip
        with ranks.together(size, "devices.cell"):
            assert STRATEGIES[strategy].load()(search).groups
        seen[size] = paths.of_ranks
    (steps, weights, own), (other_steps, other_weights, other_own) = seen[2]
    assert len(steps) > 10 and steps == other_steps
    assert torch.equal(weights, other_weights)
    if strategy in ("random_one_shot", "proxyless", "enas"):
        assert len({str(step) for step in steps}) > 1
        assert own != other_own  # left to itself every process draws another
    if strategy != "enas":  # whose controller draws more than paths
        assert steps == seen[1][0][0]
        assert alike(found[2], found[1]) < CLOSE


def _watched(evaluator: Any, paths: Paths, search: Search, **options: Any) -> Any:
    return evaluator(search, **options | {"callbacks": [*options.get("callbacks", ()), paths]})


def test_students_that_stop_early_average_and_go_on_with_train_alone(root: Path) -> None:
    settings = {"patience": 1, "epochs": 6, "averaging": 0.1, "last_epochs": 1, "sparse_embeddings": False}
    run = student_run(root, **settings)
    ensure(run, "features")
    found = []
    for size in (1, 2, 3):
        with ranks.together(size, "devices.supernet"):
            found.append(distil(run))
    for other in found[1:]:
        assert alike(other.epochs, found[0].epochs) < CLOSE
        assert other.facts["kept_epoch"] == found[0].facts["kept_epoch"]


def test_a_process_that_fails_is_named_and_the_next_are_new() -> None:
    with ranks.together(2, "devices.teacher"):
        two = ranks.active()
        assert two is not None
        named = r"process 1 of 2 failed, MemoryError: no room.*devices\.teacher to 1"
        with pytest.raises(PhaseError, match=named), two.working(fail):
            pass
        with (
            pytest.raises(PhaseError, match="process 1 of 2 failed, it ended with -9"),
            two.working(averaged_gradients),
        ):
            two._processes[0].kill()
            averaged_gradients()
        with two.working(averaged_gradients) as results:
            averaged_gradients()
        assert len(results) == 1


def test_no_process_outlives_one_that_is_killed() -> None:
    script = (
        "import ranked; from nni_bertnas import ranks\n"
        "with ranks.together(2, 'devices.teacher'):\n"
        "    two = ranks.active()\n"
        "    with two.working(ranked.averaged_gradients): ranked.averaged_gradients()\n"
        "    print(two._processes[0].pid, flush=True); input()"
    )
    folders = os.pathsep.join(filter(None, sys.path))
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": folders},
    ) as process:
        assert process.stdout is not None
        other = Path(f"/proc/{int(process.stdout.readline())}")
        assert other.exists()
        process.kill()
        deadline = time.monotonic() + 30
        while other.exists() and time.monotonic() < deadline:
            time.sleep(0.2)
    assert not other.exists()


@pytest.mark.parametrize("moment", [0.0, 0.3, 0.7])
def test_a_run_of_two_processes_ends_when_it_is_told_to(root: Path, moment: float) -> None:
    """Wherever in a step it is, at Slurm's or anybody's SIGTERM."""
    run = tiny_run(root, name=f"ended_{moment}", devices={"teacher": 2}, teacher={"epochs": 100_000})
    (root / "ended.yml").write_text(to_yaml(run.study))
    command = [str(Path(sys.executable).with_name("bertnas")), "run", "ended.yml"]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        while "epoch 2:" not in process.stdout.readline():
            assert process.poll() is None
        time.sleep(moment)
        process.terminate()
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM and "interrupted; the same command goes on" in said, said


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "best_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with ranks.together(2, "devices.teacher"):
        others = ranks.active()
        with pytest.raises(ConfigError, match=r"devices\.teacher must be at most 1, the GPUs"), others.working(fail):
            pass
