import numpy as np
import pytest
import torch

from nni_bertnas.data.batches import Batch
from nni_bertnas.training.losses import (
    LOSSES,
    Output,
    Scale,
    hidden_mse,
    logit_mse,
    masked_absolute_sum,
    masked_mse,
    soft_cross_entropy,
    weighted_losses,
)

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


def whole_batch() -> tuple[Output, Batch]:
    """With the targets of every loss."""
    torch.manual_seed(0)
    hidden = list(torch.randn(2, 2, 4, 3).unbind(0))
    output = Output(logits=torch.randn(2, 5), hidden=[torch.randn(2, 4, 3), torch.randn(2, 4, 3)])
    return output, Batch(mask=MASK, logits=torch.randn(2, 5), labels=torch.tensor([1, 3]), hidden=hidden)


def test_the_weighted_sum_is_the_sum_of_the_weighted() -> None:
    output, batch = whole_batch()
    scale, weights = Scale(variances=[2.0, 3.0]), {name: 0.5 + number for number, name in enumerate(LOSSES)}
    total, parts = weighted_losses(weights, output, batch, scale)
    assert list(parts) == list(LOSSES)
    assert parts == {name: loss.compute(output, batch, scale) for name, loss in LOSSES.items()}
    assert total.item() == pytest.approx(sum(weights[name] * parts[name].item() for name in parts), rel=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_passed_over_where_its_target_is_missing(name: str) -> None:
    output, batch = whole_batch()
    setattr(batch, LOSSES[name].needs, [] if LOSSES[name].needs == "hidden" else None)
    weights = dict.fromkeys(LOSSES, 1.0)
    _, parts = weighted_losses(weights, output, batch, Scale(variances=[2.0, 3.0]))
    assert set(parts) == {one for one, loss in LOSSES.items() if loss.needs != LOSSES[name].needs}
