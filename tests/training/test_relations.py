"""Attention and value relations: against loops, against the teacher's own modules, and through a study."""

import math
from pathlib import Path

import pytest
import torch
import transformers
from tiny import Recorder, all_units, chain_cell, tiny_run
from torch import nn

from nni_bertnas.data.batches import Batch
from nni_bertnas.errors import ConfigError
from nni_bertnas.stages.stage import ensure
from nni_bertnas.training.losses import LOSSES, Output, Scale
from nni_bertnas.training.relations import Attention, captured

MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]]).bool()
SHAPES = {
    "Bert": {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 16, "intermediate_size": 8},
    "Roberta": {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 16, "intermediate_size": 8},
    "DistilBert": {"n_layers": 2, "n_heads": 4, "dim": 16, "hidden_dim": 8},
}


@pytest.mark.parametrize("name", ["attention_relation", "value_relation"])
def test_the_losses_against_a_naive_loop(name: str) -> None:
    torch.manual_seed(0)
    hidden, own = torch.randn(2, 2, 4, 16), torch.randn(2, 3, 2, 4, 8)  # of two blocks
    maps, biases = torch.randn(2, 3, 16, 16), torch.randn(2, 3, 16)
    teacher = Attention(weights=list(maps), biases=list(biases), heads=4)
    places = (0, 1) if name == "attention_relation" else (2, 2)
    found = []
    for block in range(2):
        total, count = 0.0, 0
        for row in range(2):
            length = int(MASK[row].sum())
            for head in range(4):
                logarithms = []
                for side, size in ((own[block, :, row, :length], 2), (None, 4)):
                    if side is None:
                        side = torch.stack(
                            [hidden[block, row, :length] @ maps[block, n].T + biases[block, n] for n in range(3)]
                        )
                    part = slice(head * size, (head + 1) * size)
                    products = side[places[0]][:, part] @ side[places[1]][:, part].T / math.sqrt(size)
                    logarithms.append(products.log_softmax(1))
                made, wanted = logarithms
                total += float((wanted.exp() * (wanted - made)).sum())
                count += length
        found.append(total / count)
    output = Output(hidden=[torch.zeros(1)], attention=list(own))
    batch = Batch(mask=MASK, entries=list(hidden))
    loss = LOSSES[name].compute(output, batch, Scale(attention=teacher))
    assert loss.item() == pytest.approx(sum(found) / 2, rel=1e-4)
    one = Output(hidden=[torch.zeros(1)], attention=[own[0], None])
    assert LOSSES[name].compute(one, batch, Scale(attention=teacher)).item() == pytest.approx(found[0], rel=1e-4)
    none = Output(hidden=[torch.zeros(1, requires_grad=True)], attention=[None, None])
    nothing = LOSSES[name].compute(none, batch, Scale(attention=teacher))
    nothing.backward()
    assert nothing.item() == 0


@pytest.mark.parametrize("kind", SHAPES)
def test_the_teachers_projections_are_those_of_its_layers(kind: str) -> None:
    config = getattr(transformers, f"{kind}Config")(vocab_size=20, pad_token_id=0, **SHAPES[kind])
    model = getattr(transformers, f"{kind}Model")(config).eval()
    seen: list[torch.Tensor] = []
    names = ("q_lin", "k_lin", "v_lin") if kind == "DistilBert" else ("query", "key", "value")
    for path, module in model.named_modules():
        if ".1." in path and path.endswith(names):
            module.register_forward_hook(lambda module, inputs, output: seen.append(output))
    states = model(torch.tensor([[3, 4, 5, 6]]), output_hidden_states=True).hidden_states
    attention = Attention.of(model, [0, 1])
    assert attention.heads == 4 and len(seen) == 3
    torch.testing.assert_close(attention.project(1, states[1]), torch.stack(seen))


def test_a_teacher_of_another_kind_is_refused() -> None:
    model = nn.ModuleList([nn.Linear(2, 2)])
    model.config = transformers.BertConfig(num_hidden_layers=1)
    with pytest.raises(ConfigError, match="leave attention_relation"):
        Attention.of(model, [0])


def test_the_first_attention_of_every_cell_is_seen() -> None:
    kinds = [("convolution_3",), ("convolution_3", "attention_4", "attention_8")]
    cells = [chain_cell(*names, teacher_size=32, hidden_size=16).eval() for names in kinds]
    x, mask = torch.randn(2, 4, 32), MASK
    with captured(cells) as seen:
        for cell in cells:
            cell(x, mask)
    assert seen[0] is None and seen[1] is not None and seen[1].shape == (3, 2, 4, 16)
    layer = cells[1].body.layers[1]
    before = cells[1].body.layers[0](cells[1].into(x), mask)
    projected = layer.operation.query_key_value(layer.norm(before)).chunk(3, -1)
    torch.testing.assert_close(seen[1], torch.stack(projected))
    cells[1](x, mask)  # outside nothing is kept
    assert not any(module._forward_hooks for module in cells[1].modules())


def test_a_study_learns_relations(built_copy: Path) -> None:
    relations = {"attention_relation": 1.0, "value_relation": 1.0}
    run = tiny_run(
        built_copy,
        cell={"strategy": "random", "operations": ["attention_4", "attention_8"], "losses": relations, "epochs": 1},
        block={"losses": {"hidden_mse": 1.0, **relations}},
        distill={"losses": {"logit_mse": 1.0, **relations}},
        supernet={"epochs": 2},
    )
    all_units(run, "cell", "block")
    seen = Recorder()
    ensure(run, "supernet", {"seed": 0}, seen)
    for name in relations:
        assert 0 < seen.reported[-1][f"{name}_loss"] < seen.reported[0][f"{name}_loss"]
