"""The teacher's outputs with a cell in place of a block, against the teacher run by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import all_units, tiny_run
from torch import nn
from transformers import (
    AlbertConfig,
    AutoModelForSequenceClassification,
    BertConfig,
    BertModel,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    PretrainedConfig,
    RobertaConfig,
)

from nni_bertnas.data.batches import Batch
from nni_bertnas.errors import PhaseError
from nni_bertnas.stages.cells import load_ranked, read_rankings
from nni_bertnas.stages.choice import worth
from nni_bertnas.training.replaced import replaced_errors

SIZES = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
SHAPES = [
    BertConfig(**SIZES),
    ElectraConfig(**SIZES, embedding_size=16),
    DebertaV2Config(**SIZES, max_position_embeddings=64),
    RobertaConfig(**SIZES, max_position_embeddings=64),
    DistilBertConfig(vocab_size=50, dim=32, n_layers=3, n_heads=4, hidden_dim=64),
]


class Given(nn.Module):
    """The exact answer of the layers that it stands for, and so much noise."""

    def __init__(self, layers: nn.ModuleList, noise: float) -> None:
        super().__init__()
        self.layers, self.noise = layers, noise

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor, second: torch.Tensor | None) -> torch.Tensor:
        bias = (1 - mask.float())[:, None, None, :] * torch.finfo(torch.float).min
        for layer in self.layers:
            hidden = layer(hidden, bias)
            hidden = hidden[0] if isinstance(hidden, tuple) else hidden
        return hidden + self.noise * torch.sin(torch.arange(hidden.numel()).view_as(hidden))


class Zero(nn.Module):
    """Nothing at all."""

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor, second: torch.Tensor | None) -> torch.Tensor:
        return torch.zeros_like(hidden)


def batches() -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    found = []
    for length in (9, 6):
        ids = torch.randint(3, 50, (8, length), generator=generator)
        mask = torch.arange(length) < torch.tensor([length] * 4 + [length - 2] * 4)[:, None]
        types = (torch.arange(length) >= length // 2).long().expand(8, -1)
        found.append(Batch(input_ids=ids, mask=mask, token_type_ids=types))
    return found


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.model_type)
@pytest.mark.parametrize("edges", [(0, 1), (1, 2), (2, 3)])
def test_what_leaves_the_hidden_states_alone_costs_nothing(shape: PretrainedConfig, edges: tuple[int, int]) -> None:
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(shape).eval()
    states = [
        model(input_ids=one.input_ids, attention_mask=one.mask.long(), output_hidden_states=True).hidden_states
        for one in batches()
    ]

    class Known(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.seen = 0

        def forward(self, hidden: torch.Tensor, mask: torch.Tensor, second: torch.Tensor | None) -> torch.Tensor:
            self.seen += 1
            return states[self.seen - 1][edges[1]]

    plain = [Batch(input_ids=one.input_ids, mask=one.mask, token_type_ids=torch.zeros_like(one.input_ids))
             for one in batches()]  # fmt: skip
    found = replaced_errors(model, edges, [Known(), Zero()], plain, separate=False)
    assert found is not None and found[0] < 1e-9 and found[1] > 1e-3
    assert not any("forward" in vars(module) for module in model.modules())  # nothing is left behind


def test_errors_are_those_of_the_layers_behind_over_the_variance() -> None:
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(BertConfig(**SIZES)).eval()
    layers = model.bert.encoder.layer
    cells = [Given(layers[1:2], noise) for noise in (0.0, 0.1, 0.3)]
    found = replaced_errors(model, (1, 2), cells, batches(), separate=False)
    truth, made = [], [[] for _ in cells]
    for one in batches():
        bias = (1 - one.mask.float())[:, None, None, :] * torch.finfo(torch.float).min
        inputs = {"input_ids": one.input_ids, "attention_mask": one.mask.long(), "token_type_ids": one.token_type_ids}
        entry = model(**inputs, output_hidden_states=True).hidden_states[1]
        truth.append(model(**inputs).logits)
        for number, cell in enumerate(cells):
            own = cell(entry, one.mask, None)
            own[~one.mask] = 0.0  # what stands there counts nothing
            made[number].append(model.classifier(model.bert.pooler(layers[2](own, bias))))
    wanted = torch.cat(truth)
    scale = (wanted - wanted.mean(0)).square().sum()
    expected = [float((torch.cat(own) - wanted).square().sum() / scale) for own in made]
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-9) and found[0] < found[1] < found[2]


def test_texts_read_separately_are_judged_by_their_vectors() -> None:
    torch.manual_seed(0)
    model = BertModel(BertConfig(**SIZES)).eval()
    cells = [Given(model.encoder.layer[2:], 0.0), Zero()]
    good, bad = replaced_errors(model, (2, 3), cells, batches(), separate=True) or (1.0, 0.0)
    assert bad > 0.5
    assert 0 < good < bad  # a cell does not see the piece that opens a text


def test_layers_that_are_one_cannot_be_replaced() -> None:
    shape = AlbertConfig(**SIZES, embedding_size=16)
    model = AutoModelForSequenceClassification.from_config(shape).eval()
    assert replaced_errors(model, (0, 1), [Zero()], batches(), separate=False) is None


def test_the_block_phase_keeps_both_scores(built_copy: Path) -> None:
    fields = {"cell": {"strategy": "random", "depths": [1], "epochs": 1, "candidates": 2}, "block": {"no_layer": True}}
    run = tiny_run(built_copy, supernet={"score": "replaced"}, **fields)
    all_units(run, "cell", "block")
    scores = [[one["replaced"] for one in ranking["candidates"]] for ranking in read_rankings(run)]
    assert np.min([min(one) for one in scores]) > 0
    assert [[worth(run, one) for one in block] for block in load_ranked(run)] == scores
    bare = tiny_run(built_copy, supernet={"score": "replaced"}, **{**fields, "block": {"replaced_rows": 0}})
    all_units(bare, "block")
    with pytest.raises(PhaseError, match=r"set block\.replaced_rows above 0"):
        worth(bare, load_ranked(bare)[0][0])
