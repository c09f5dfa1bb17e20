"""What is timed in another runtime than torch's is the same function there."""

import numpy as np
import pytest
import torch
from tiny import chain, chain_cell

from nni_bertnas.errors import ConfigError
from nni_bertnas.student import runtimes
from nni_bertnas.student.cost import cell_call, model_call
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


def test_what_is_not_installed_is_said_with_the_field(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in RUNTIMES:
        check_runtime(name, "supernet.latency_runtime")
        assert describe_runtime(name).split()[1][0].isdigit()
    own = runtimes.Runtime(title="", compile=RUNTIMES["torch"].compile, packages=("no_such_package",), starts=False)
    monkeypatch.setattr(runtimes, "RUNTIMES", {"own": own})
    with pytest.raises(ConfigError, match=r"supernet.latency_runtime: own needs no_such_package; .*\[export\]"):
        check_runtime("own", "supernet.latency_runtime")
