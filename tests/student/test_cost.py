from collections.abc import Callable

import pytest
import torch
from tiny import chain_cell

from nni_bertnas.student import cost
from nni_bertnas.student.cost import (
    cell_call,
    count_activation_bytes,
    count_flops,
    count_params,
    measure_latency_ms,
    model_call,
    operation_costs,
)
from search_space.student import StudentConfig, StudentForSequenceClassification


def test_flops_count_a_multiply_add_twice() -> None:
    cell = chain_cell("convolution_3", teacher_size=8, hidden_size=8)
    assert count_flops(cell_call(cell, 8, [10]), 10) == 2 * 10 * 3 * 8 * 8
    attention = chain_cell("attention_4", teacher_size=8, hidden_size=8)
    assert count_flops(cell_call(attention, 8, [10]), 10) == 2 * (10 * 8 * 32 + 2 * 10 * 10 * 8)
    assert count_params(cell) == 3 * 8 * 8 + 8 + 16


def test_activations_are_counted_while_they_live() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
    rows = torch.randn(10, 8)

    def call(length: int) -> torch.Tensor:
        return model(rows.view(5, 16).view(10, 8))  # views of an input cost nothing

    assert count_activation_bytes(call, 10) == 4 * (10 * 16 + 10 * 16)  # of the first map and of what follows it
    wide = torch.nn.Linear(8, 100)
    assert count_activation_bytes(lambda length: wide(rows).t()[:3], 10) == 4 * 10 * 100


def test_latency_is_the_median_of_turns_of_passes_in_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    now, order, threads = 0.0, [], []

    def call(name: str, milliseconds: dict[int, float]) -> Callable[[int], None]:
        def run(length: int) -> None:
            nonlocal now
            order.append((name, length))
            threads.append(torch.get_num_threads())
            now += milliseconds[length] / 1000

        return run

    monkeypatch.setattr(cost.time, "perf_counter", lambda: now)
    before = torch.get_num_threads()
    calls = {"a": call("a", {1: 1.0, 2: 9.0, 3: 2.0}), "b": call("b", {1: 5.0, 2: 6.0, 3: 70.0})}
    times = measure_latency_ms(calls, [1, 2, 3], threads=1, run=2)
    assert times == pytest.approx({"a": 2.0, "b": 6.0})
    turns = ([1, 1, 2], [3, 3])  # the first pass of every turn is not counted
    assert order == [(name, length) for turn in turns for name in "ab" for length in turn]
    assert set(threads) == {1} and torch.get_num_threads() == before


def test_model_call_runs_a_student_at_each_length() -> None:
    student = StudentForSequenceClassification(
        StudentConfig(vocab_size=50, teacher_hidden_size=16, hidden_size=8)
    ).eval()
    call = model_call(student, [3, 7])
    assert call(3).logits.shape == (1, 2) and count_flops(call, 7) > count_flops(call, 3) > 0


def test_costs_of_operations_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("convolution_3", "feed_forward_2", "max_pool_3")
    assert operation_costs(names, 8, "num_params", 5) == {
        "convolution_3": 3 * 64 + 8, "feed_forward_2": 2 * 2 * 64 + 16 + 8, "max_pool_3": 0,
    }  # fmt: skip
    assert operation_costs(names, 8, "num_flops", 5) == {
        "convolution_3": 2 * 5 * 3 * 64, "feed_forward_2": 2 * 5 * 4 * 64, "max_pool_3": 0,
    }  # fmt: skip
    monkeypatch.setattr(cost, "measure_latency_ms", lambda calls, lengths: {name: len(lengths) for name in calls})
    assert operation_costs(names, 8, "latency_ms", 5) == dict.fromkeys(names, 30)
