"""Probes on the teacher's edges, the loss that reads through them, and a study that asks for it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import Recorder, tiny_run

from nni_bertnas.data.batches import Batch
from nni_bertnas.errors import PhaseError
from nni_bertnas.stages.run import Run
from nni_bertnas.stages.stage import ensure, load
from nni_bertnas.training.losses import Output, Scale, probe
from nni_bertnas.training.probes import Probes, fit_probes, probe_features

MASK = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]]).bool()


def probes(labels: int, features: int, *, separate: bool = False) -> Probes:
    torch.manual_seed(1)
    return Probes(
        edges=(2, 4), weights=torch.randn(2, labels, features), biases=torch.randn(2, labels),
        quality=torch.tensor([0.25, 0.75]), separate=separate,
    )  # fmt: skip


@pytest.mark.parametrize("labels", [1, 3])
def test_the_loss_against_a_naive_loop(labels: int) -> None:
    own = probes(labels, 5)
    hidden = torch.randn(2, 2, 2, 4, 5)  # student and teacher, edges, batch
    expected = 0.0
    for edge in range(2):
        total = 0.0
        for row in range(2):
            length = int(MASK[row].sum())
            made, wanted = (
                own.weights[edge] @ hidden[side, edge, row, :length].mean(0) + own.biases[edge] for side in range(2)
            )
            if labels == 1:
                total += float((made - wanted) ** 2) / 2
            else:
                p, q = wanted.softmax(0), made.softmax(0)
                total += float((p * (p / q).log()).sum()) / 2
        expected += total * float(own.quality[edge])
    output, batch = Output(hidden=list(hidden[0])), Batch(mask=MASK, hidden=list(hidden[1]))
    assert probe(output, batch, Scale(probes=own)).item() == pytest.approx(expected, rel=1e-4)
    assert probe(Output(hidden=batch.hidden), batch, Scale(probes=own)).abs() < 1e-6


def test_texts_read_separately_are_compared() -> None:
    hidden, mask = torch.randn(4, 3, 5), torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1], [1, 1, 0]]).bool()
    means = [hidden[row, : int(mask[row].sum())].mean(0) for row in range(4)]
    rows = [torch.cat([(means[row] - means[row + 2]).abs(), means[row] * means[row + 2]]) for row in range(2)]
    torch.testing.assert_close(probe_features(hidden, mask, separate=True), torch.stack(rows))
    own = probes(3, 10, separate=True)
    torch.testing.assert_close(own.read(1, hidden, mask), torch.stack(rows) @ own.weights[1].T + own.biases[1])


def test_some_of_the_edges_count_one_together_and_survive_on_disk(tmp_path: Path) -> None:
    own = probes(3, 5)
    own.save(tmp_path / "probes.npz")
    read = Probes.load(tmp_path / "probes.npz")
    assert read.edges == (2, 4) and read.weights.equal(own.weights) and not read.separate
    one = read.of([4])
    assert one.quality.tolist() == [1.0] and one.weights[0].equal(own.weights[1]) and one.biases[0].equal(own.biases[1])


def test_a_probe_is_as_good_as_what_the_edge_knows(built: Run) -> None:
    found = fit_probes(built.train, built.dev, built.edges[1:], 2, 10_000)
    assert found.quality.sum() == pytest.approx(1) and found.quality.argmax() == len(built.edges) - 2
    batch = next(iter(built_batches(built)))
    answers = found.read(1, batch.hidden[0], batch.mask).argmax(1)
    teacher = torch.from_numpy(built.dev.logits.astype(np.float32))[batch.labels].argmax(1)
    assert float((answers == teacher).double().mean()) > 0.9  # the last edge leads to the teacher's own classifier


def built_batches(run: Run) -> list[Batch]:
    """All of dev in one batch, the numbers of its rows as labels."""
    store = run.dev
    lengths = torch.from_numpy(store.lengths)
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    rows = np.arange(len(store))
    return [Batch(mask=mask, hidden=store.hidden(run.edges[-1:], rows), labels=torch.from_numpy(rows))]


def test_a_study_learns_through_probes(built_copy: Path) -> None:
    run = tiny_run(
        built_copy,
        cell={"strategy": "random", "losses": {"probe": 1.0}, "epochs": 1},
        block={"losses": {"hidden_mse": 1.0, "probe": 1.0}},
        distill={"losses": {"logit_mse": 1.0, "hidden_mse": 0.1, "probe": 1.0}},
        supernet={"epochs": 2},
    )
    with pytest.raises(PhaseError, match="bertnas probes STUDY"):
        _ = run.probes
    for unit in load("cell").units(run):
        ensure(run, "cell", unit)
    quality = json.loads((run.folder("probes") / "result.json").read_text())["quality"]
    assert set(quality) == {str(edge) for edge in run.edges[1:]} and sum(quality.values()) == pytest.approx(1)
    assert "weights of the edges" in load("probes").describe(run, {"quality": quality})
    for unit in load("block").units(run):
        ensure(run, "block", unit)
    seen = Recorder()
    ensure(run, "supernet", {"seed": 0}, seen)
    losses = [one["probe_loss"] for one in seen.reported]
    assert losses[-1] < losses[0]
    assert not load("probes").units(tiny_run(built_copy))
