import numpy as np
import pytest
import torch
from conftest import chain_cell
from torch import nn

from nni_bertnas.search.watch import entropy
from nni_bertnas.student.cost import cell_call, count_flops, count_params, measure_latency_ms, model_call
from nni_bertnas.student.selection import Option, combinations
from nni_bertnas.training.losses import (
    hidden_loss,
    logit_mse,
    masked_absolute_sum,
    masked_mse,
    reduced_rank_regression,
    soft_cross_entropy,
)
from search_space.student import StudentConfig, StudentForSequenceClassification

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
    assert hidden_loss([student, student], [target, target], [2, 4], MASK).item() == pytest.approx(expected, rel=1e-5)


def test_logit_losses_against_naive_loop() -> None:
    student, teacher = torch.randn(2, 5, 3).unbind(0)
    soft = np.exp(teacher.numpy() / 2) / np.exp(teacher.numpy() / 2).sum(1, keepdims=True)
    scaled = student.numpy() / 2
    log_probabilities = scaled - np.log(np.exp(scaled).sum(1, keepdims=True))
    assert soft_cross_entropy(student, teacher, 2.0).item() == pytest.approx(
        4 * -(soft * log_probabilities).sum(1).mean(), rel=1e-5
    )
    assert logit_mse(student, teacher, 2.0).item() == pytest.approx(
        float(((student - teacher) ** 2).mean()) / 4, rel=1e-5
    )


def test_reduced_rank_regression_finds_a_planted_map_and_beats_truncation() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 12, generator=generator) * torch.linspace(3, 0.1, 12)
    low_rank = torch.randn(12, 4, generator=generator) @ torch.randn(4, 12, generator=generator)
    into, into_bias, out, out_bias = reduced_rank_regression(x, x @ low_rank + 2, 4)
    torch.testing.assert_close((x @ into.T + into_bias) @ out.T + out_bias, x @ low_rank + 2, rtol=1e-3, atol=1e-2)

    y = x @ torch.randn(12, 12, generator=generator)
    into, into_bias, out, out_bias = reduced_rank_regression(x, y, 5)
    ours = ((x @ into.T + into_bias) @ out.T + out_bias - y).square().mean()
    u, s, v = torch.linalg.svd(torch.linalg.lstsq(x - x.mean(0), y - y.mean(0)).solution)
    truncated = ((x - x.mean(0)) @ (u[:, :5] * s[:5] @ v[:5]) + y.mean(0) - y).square().mean()
    assert ours < truncated


def test_flops_count_a_multiply_add_twice() -> None:
    cell = chain_cell("convolution_3", teacher_size=8, hidden_size=8)
    assert count_flops(cell_call(cell, 8, [10]), 10) == 2 * 10 * 3 * 8 * 8
    attention = chain_cell("attention_4", teacher_size=8, hidden_size=8)
    assert count_flops(cell_call(attention, 8, [10]), 10) == 2 * (10 * 8 * 32 + 2 * 10 * 10 * 8)
    assert count_params(cell) == 3 * 8 * 8 + 8 + 16


def test_latency_orders_a_small_and_a_large_model() -> None:
    small, large = nn.Linear(8, 8), nn.Sequential(*[nn.Linear(1024, 1024) for _ in range(12)])
    x, y = torch.randn(1, 8), torch.randn(64, 1024)
    times = measure_latency_ms({"small": lambda n: small(x), "large": lambda n: large(y)}, [1] * 9)
    assert 0 < times["small"] < times["large"]


def test_model_call_runs_a_student_at_each_length() -> None:
    student = StudentForSequenceClassification(
        StudentConfig(vocab_size=50, teacher_hidden_size=16, hidden_size=8)
    ).eval()
    call = model_call(student, [3, 7])
    assert call(3).logits.shape == (1, 2) and count_flops(call, 7) > count_flops(call, 3) > 0


def test_entropy() -> None:
    assert entropy([1.0, 0.0]) == 0.0 and entropy([0.25] * 4) == pytest.approx(np.log(4))


def option(score: float, num_params: int, latency_ms: float) -> Option:
    return Option(score=score, num_params=num_params, latency_ms=latency_ms)


def test_selection_takes_the_best_sum_within_the_budget() -> None:
    blocks = [
        [option(0.1, 100, 3.0), option(0.2, 10, 1.0)],
        [option(0.3, 100, 3.0), option(0.5, 10, 1.0)],
    ]
    base = option(0.0, 50, 1.0)
    assert combinations(blocks, base)[0].choice == (0, 0)
    best = combinations(blocks, base, max_params=160)[0]
    assert best.choice == (1, 0) and best.num_params == 160 and best.score == pytest.approx(0.5)
    assert [one.choice for one in combinations(blocks, base, max_latency_ms=5.0)] == [(1, 0), (0, 1), (1, 1)]
    assert combinations(blocks, base, max_params=60) == []
