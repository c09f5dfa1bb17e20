"""Training by two real processes: the batches, losses and weights of one."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from ranked import CLOSE, Trained, alike, averaged_gradients, distil, own_gradients, student_run

from nni_bertnas import ranks
from nni_bertnas.stages.run import Run


@pytest.fixture(scope="module")
def alone(built: Run) -> Trained:
    """What one process trains."""
    return distil(student_run(built.root.parents[1]))


@pytest.fixture(scope="module")
def two(alone: Trained) -> Iterator[ranks.Ranks]:
    """Another process beside this one, from now on."""
    with ranks.together(2, "devices.teacher"):
        others = ranks.active()
        assert others is not None
        yield others


def test_two_processes_train_the_student_that_one_trains(built: Run, alone: Trained, two: ranks.Ranks) -> None:
    run = student_run(built.root.parents[1])
    assert len(run.train) % run.study.supernet.batch_size == 1  # one rank has no row of its own in the last batch
    found = distil(run)
    assert alike(found.epochs, alone.epochs) < CLOSE
    assert found.facts["kept_epoch"] == alone.facts["kept_epoch"]
    for name, weights in alone.weights.items():
        torch.testing.assert_close(found.weights[name], weights, atol=5e-3, rtol=0)  # Adam's first steps are of signs


def test_gradients_are_means_over_ranks_rows_of_sparse_ones_too(two: ranks.Ranks) -> None:
    with two.working(averaged_gradients) as results:
        own = averaged_gradients()
    parts = [own_gradients(rank) for rank in (0, 1)]
    for found in (own, results[0]):
        torch.testing.assert_close(found[0], (parts[0][0] + parts[1][0]) / 2)
        torch.testing.assert_close(found[1], parts[0][1] / 2)
        assert found[2] is None
        assert found[3].is_sparse and found[3].indices().tolist() == [[1, 3, 4]]
        torch.testing.assert_close(found[3].to_dense(), (parts[0][3].to_dense() + parts[1][3].to_dense()) / 2)


def test_processes_talk_over_the_loopback_alone(two: ranks.Ranks) -> None:
    with two.working(averaged_gradients):
        averaged_gradients()
    pids = [os.getpid(), *(process.pid for process in two._processes)]
    sockets = {os.readlink(file) for pid in pids for file in Path(f"/proc/{pid}/fd").iterdir() if file.exists()}
    listening = []
    for table, loopback in (("tcp", "0100007F"), ("tcp6", "00000000000000000000000001000000")):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
                listening.append(fields[1].split(":")[0] == loopback)
    assert listening and all(listening)
