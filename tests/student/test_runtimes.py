"""What is timed in another runtime than torch's is the same function there."""

import numpy as np
import pytest
import torch
from tiny import chain, chain_cell

from nni_bertnas.errors import ConfigError
from nni_bertnas.student import runtimes
from nni_bertnas.student.cost import Passes, cell_call, model_call
from nni_bertnas.student.latency import cell_parts
from nni_bertnas.student.runtimes import RUNTIMES, check_runtime, describe_runtime
from search_space.student import StudentConfig, StudentForSequenceClassification

LENGTHS = (8, 33, 64)


@pytest.mark.parametrize("operations", [("convolution_3", "attention_4"), ("max_pool_3", "bidirectional_gru")])
@torch.inference_mode()
def test_cells_are_the_same_in_every_runtime(operations: tuple[str, ...]) -> None:
    for passes in (
        cell_call(chain_cell(*operations, teacher_size=24, hidden_size=16).eval(), 24, LENGTHS),
        cell_parts(chain(operations[1]), 16, sides=2, batch=3)[0].make(LENGTHS),
    ):
        call = RUNTIMES["onnx"].compile(passes, 1)
        for length in LENGTHS:
            np.testing.assert_allclose(call(length), passes(length), atol=1e-5)


@torch.inference_mode()
def test_models_are_the_same_in_every_runtime() -> None:
    config = StudentConfig(vocab_size=30, embedding_size=8, hidden_size=8, teacher_hidden_size=8, cells=[])
    passes = model_call(StudentForSequenceClassification(config).eval(), LENGTHS, pairs=True, batch=2)
    call = RUNTIMES["onnx"].compile(passes, 1)
    for length in LENGTHS:
        np.testing.assert_allclose(call(length), passes(length).logits, atol=1e-5)


@pytest.mark.parametrize("encoding", ["joint", "separate"])
@torch.inference_mode()
def test_a_student_that_finds_the_second_text_by_separators(encoding: str) -> None:
    """What learns from RoBERTa or MPNet, which have no token types and write two separators between texts."""
    torch.manual_seed(0)
    config = StudentConfig(
        vocab_size=30, embedding_size=8, hidden_size=8, teacher_hidden_size=8, cells=[chain("attention_4").to_dict()],
        type_vocab_size=1, sep_token_id=2, head="compare", encoding=encoding, token_weights=True,
    )  # fmt: skip
    student = StudentForSequenceClassification(config).eval()
    rows = ([0, 7, 2, 2, 8, 9, 2, 1], [0, 7, 7, 2, 9, 8, 2], [0, 2, 2, 9, 2], [0, 2, 2, 2], [0, 2])
    ids = {len(row): torch.tensor([row]) for row in rows}
    inputs = {n: {"input_ids": one, "attention_mask": (one != 1).long()} for n, one in ids.items()}
    passes = Passes(student, inputs)
    call = RUNTIMES["onnx"].compile(passes, 1)
    for length in inputs:
        np.testing.assert_allclose(call(length), passes(length).logits, atol=1e-5)


def test_what_is_not_installed_is_said_with_the_field(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in RUNTIMES:
        check_runtime(name, "supernet.latency_runtime")
        assert describe_runtime(name).split()[1][0].isdigit()
    own = runtimes.Runtime(title="", compile=RUNTIMES["torch"].compile, packages=("no_such_package",), starts=False)
    monkeypatch.setattr(runtimes, "RUNTIMES", {"own": own})
    with pytest.raises(ConfigError, match=r"supernet.latency_runtime: own needs no_such_package; .*\[export\]"):
        check_runtime("own", "supernet.latency_runtime")
