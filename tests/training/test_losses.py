from dataclasses import replace

import numpy as np
import pytest
import torch

from nni_bertnas.data.batches import Batch
from nni_bertnas.data.rows import UNLABELLED
from nni_bertnas.training.losses import (
    LOSSES,
    Balance,
    Output,
    Scale,
    hidden_mse,
    hidden_relation,
    logit_mse,
    masked_absolute_sum,
    masked_mse,
    sentence_vector,
    soft_cross_entropy,
    weighted_losses,
)
from nni_bertnas.training.probes import Probes
from nni_bertnas.training.relations import Attention

PROBES = Probes(
    edges=(1, 2), weights=torch.ones(2, 5, 3), biases=torch.zeros(2, 5), quality=torch.ones(2), separate=False
)
ATTENTION = Attention(weights=[[torch.eye(3)] * 3] * 2, biases=[[torch.zeros(3)] * 3] * 2, heads=1)
MASK = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]]).bool()


def test_masked_losses_against_naive_loop() -> None:
    student, target = torch.randn(2, 2, 4, 3).unbind(0)
    squares, absolutes = [], []
    for row, position in MASK.nonzero().tolist():
        for unit in range(3):
            difference = float(student[row, position, unit] - target[row, position, unit])
            squares.append(difference**2)
            absolutes.append(abs(difference))
    assert masked_mse(student, target, MASK).item() == pytest.approx(np.mean(squares), rel=1e-5)
    assert masked_absolute_sum(student, target, MASK).item() == pytest.approx(np.sum(absolutes), rel=1e-5)
    expected = (np.mean(squares) / 2 + np.mean(squares) / 4) / 2
    output, batch = Output(hidden=[student, student]), Batch(mask=MASK, hidden=[target, target])
    assert hidden_mse(output, batch, Scale(variances=[2, 4])).item() == pytest.approx(expected, rel=1e-5)


def test_logit_losses_against_naive_loop() -> None:
    student, teacher = torch.randn(2, 5, 3).unbind(0)
    soft = np.exp(teacher.numpy() / 2) / np.exp(teacher.numpy() / 2).sum(1, keepdims=True)
    scaled = student.numpy() / 2
    log_probabilities = scaled - np.log(np.exp(scaled).sum(1, keepdims=True))
    made = Output(logits=student), Batch(mask=MASK, logits=teacher), Scale(temperature=2.0)
    expected = 4 * -(soft * log_probabilities).sum(1).mean()
    assert soft_cross_entropy(*made).item() == pytest.approx(expected, rel=1e-5)
    assert logit_mse(*made).item() == pytest.approx(float(((student - teacher) ** 2).mean()) / 4, rel=1e-5)


def test_relations_against_naive_loop() -> None:
    made, target = torch.randn(2, 2, 4, 64).unbind(0)
    found, count = 0.0, 0
    for row in range(2):
        length = int(MASK[row].sum())
        for part in (slice(0, 32), slice(32, 64)):
            products = [x[row, :length, part] @ x[row, :length, part].T / 32**0.5 for x in (target, made)]
            wanted, own = (value.softmax(1) for value in products)
            found += float((wanted * (wanted / own).log()).sum())
            count += length
    loss = hidden_relation(Output(hidden=[made]), Batch(mask=MASK, hidden=[target]), Scale())
    assert loss.item() == pytest.approx(found / count, rel=1e-4)
    assert hidden_relation(Output(hidden=[target]), Batch(mask=MASK, hidden=[target]), Scale()).abs() < 1e-6


def test_sentence_vectors_against_naive_loop() -> None:
    made, target = torch.randn(2, 6, 3).unbind(0)
    target[4] = 0.0  # a text that is missing
    cosines = [float(a @ b / a.norm() / b.norm()) for a, b in zip(made, target, strict=True)]
    expected = np.mean([1 - value for number, value in enumerate(cosines) if number != 4])
    found = sentence_vector(Output(vectors=made), Batch(mask=MASK, vectors=target), Scale())
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_rows_that_the_teacher_does_not_answer_do_not_count() -> None:
    student, teacher = torch.randn(2, 4, 3).unbind(0)
    known = [0, 2]
    asked = teacher.clone()
    asked[[1, 3]] = float("nan")
    for loss in (logit_mse, soft_cross_entropy):
        every = loss(Output(logits=student), Batch(mask=MASK, logits=asked), Scale())
        part = loss(Output(logits=student[known]), Batch(mask=MASK, logits=teacher[known]), Scale())
        torch.testing.assert_close(every, part)
        nothing = loss(Output(logits=student), Batch(mask=MASK, logits=asked * float("nan")), Scale())
        assert nothing == 0.0


def test_hidden_states_of_texts_read_separately_have_a_mask_of_their_own() -> None:
    made, target = torch.randn(2, 4, 3, 2).unbind(0)
    own = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1], [1, 0, 0]]).bool()
    batch = Batch(mask=MASK, hidden=[target], hidden_mask=own)
    expected = (made - target)[own].square().mean() / 2
    torch.testing.assert_close(hidden_mse(Output(hidden=[made]), batch, Scale(variances=[2.0])), expected)


def whole_batch() -> tuple[Output, Batch]:
    """With the targets of every loss."""
    torch.manual_seed(0)
    hidden = list(torch.randn(2, 2, 4, 3).unbind(0))
    output = Output(
        logits=torch.randn(2, 5),
        vectors=torch.randn(2, 3),
        hidden=[torch.randn(2, 4, 3), torch.randn(2, 4, 3)],
        attention=[torch.randn(3, 2, 4, 3), None],
    )
    labels, vectors = torch.tensor([1, 3]), torch.randn(2, 3)
    logits, entries = torch.randn(2, 5), [torch.randn(2, 4, 3), None]
    return output, Batch(mask=MASK, logits=logits, labels=labels, vectors=vectors, hidden=hidden, entries=entries)


def test_the_weighted_sum_is_the_sum_of_the_weighted() -> None:
    output, batch = whole_batch()
    scale, weights = Scale(variances=[2.0, 3.0]), {name: 0.5 + number for number, name in enumerate(LOSSES)}
    scale = replace(scale, probes=PROBES, attention=ATTENTION)
    total, parts = weighted_losses(weights, output, batch, scale)
    assert list(parts) == list(LOSSES)
    assert parts == {name: loss.compute(output, batch, scale) for name, loss in LOSSES.items()}
    assert total.item() == pytest.approx(sum(weights[name] * parts[name].item() for name in parts), rel=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_passed_over_where_its_target_is_missing(name: str) -> None:
    output, batch = whole_batch()
    setattr(batch, LOSSES[name].needs, [] if LOSSES[name].needs in ("hidden", "entries") else None)
    weights = dict.fromkeys(LOSSES, 1.0)
    _, parts = weighted_losses(weights, output, batch, Scale(variances=[2.0, 3.0], probes=PROBES, attention=ATTENTION))
    assert set(parts) == {one for one, loss in LOSSES.items() if loss.needs != LOSSES[name].needs}


def one_row(output: Output, batch: Batch, row: int) -> tuple[Output, Batch]:
    """What of a batch a rank has that is given one row of it."""

    def of(value: torch.Tensor | None) -> torch.Tensor | None:
        return None if value is None else value[row : row + 1]

    made = Output(
        logits=of(output.logits), vectors=of(output.vectors), hidden=[one[row : row + 1] for one in output.hidden],
        attention=[None if one is None else one[:, row : row + 1] for one in output.attention],
    )  # fmt: skip
    return made, Batch(
        mask=batch.mask[row : row + 1], logits=of(batch.logits), labels=of(batch.labels), vectors=of(batch.vectors),
        hidden=[one[row : row + 1] for one in batch.hidden], entries=[of(one) for one in batch.entries],
    )  # fmt: skip


@pytest.mark.parametrize("balance", ["off", "weights", "logits"])
@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_a_mean_over_what_it_counts(name: str, missing: bool, balance: str) -> None:
    output, batch = whole_batch()
    if missing:  # one rank has nothing to learn from
        assert batch.logits is not None and batch.labels is not None and batch.vectors is not None
        batch.logits[1], batch.labels[1], batch.vectors[1] = float("nan"), UNLABELLED, 0.0
    of_labels = Balance.of(balance, [0.0, 1.0, 1.0, 2.0, 3.0, 3.0, 3.0, 4.0], 5)
    scale = Scale(variances=[2.0, 3.0], probes=PROBES, attention=ATTENTION, balance=of_labels)
    whole = LOSSES[name].compute(output, batch, scale)
    parts = [one_row(output, batch, row) for row in (0, 1)]
    counts = torch.stack([LOSSES[name].count(part, scale).float() for _, part in parts])
    losses = torch.stack([LOSSES[name].compute(made, part, scale) for made, part in parts])
    torch.testing.assert_close((losses * counts).sum() / counts.sum(), whole)
