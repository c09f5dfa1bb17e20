import json
import multiprocessing
from pathlib import Path

import pytest
from tiny import tiny_run, tiny_study

from nni_bertnas.config import Study
from nni_bertnas.stages.cells import operation_parts
from nni_bertnas.stages.run import Run
from nni_bertnas.stages.stage import ensure, find, stage_fingerprint
from nni_bertnas.student.latency import LatencyTable, OtherWork, around


def test_fingerprint_follows_teacher_data_and_edges(built: Run) -> None:
    root = built.root.parents[1]

    def mark(**sections: dict) -> str:
        return stage_fingerprint(tiny_run(root, **sections), "features")

    before = mark()
    assert before == stage_fingerprint(built, "features")
    assert mark(teacher={"num_blocks": None, "boundaries": [0, 2]}) != before
    assert mark(task={"max_train_rows": 100}) != before
    assert mark(teacher={"learning_rate": 1e-3}) != before
    path = Path(str(built.study.task.data_dir)) / "SST-2" / "dev.tsv"
    text = path.read_text()
    path.write_text(text + "qab\t1\n")
    assert mark() != before
    path.write_text(text)
    assert mark() == before


def _build_in_child(
    study: Study, barrier: "multiprocessing.synchronize.Barrier", results: "multiprocessing.Queue"
) -> None:
    barrier.wait()
    results.put(ensure(Run(study), "features")["seconds"])


def test_two_processes_that_start_together_build_once(tmp_path: Path) -> None:
    study = tiny_study(tmp_path)
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    children = [context.Process(target=_build_in_child, args=(study, barrier, results)) for _ in range(2)]
    for child in children:
        child.start()
    seconds = [results.get(timeout=120) for _ in children]
    for child in children:
        child.join()
    assert seconds[0] == seconds[1]  # the same build's


def test_operations_are_measured_before_trials_run_beside_each_other(
    built_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OtherWork, "cores", lambda self: 0.0)
    run = tiny_run(built_copy, features={"dtype": "bfloat16"})
    ensure(run, "features")
    kept = LatencyTable(run.shared)
    assert all(set(around(run.latency_lengths)) <= set(kept.lengths(part)) for part in operation_parts(run).values())


def test_a_changed_file_is_found_and_mended(built_copy: Path) -> None:
    run = tiny_run(built_copy)
    ensure(run, "features")
    path = run.folder("features") / "train" / "hidden_1.bin"
    right = path.read_bytes()
    path.write_bytes(right[:1000] + bytes(100) + right[1100:])
    assert find(run, "features") is None
    ensure(run, "features")
    assert path.read_bytes() == right
    path.write_bytes(right)  # touched, not changed
    ensure(run, "features")
    checked = json.loads((run.folder("features") / "checked.json").read_text())
    assert checked["train/hidden_1.bin"] == [len(right), path.stat().st_mtime_ns]
