from functools import partial

import pytest
import torch
from torch import nn

from nni_bertnas.training.row_sparse import RowSparseAdamW, clip_gradients


def parts(sparse: bool) -> tuple[nn.Embedding, nn.Linear]:
    torch.manual_seed(0)
    return nn.Embedding(20, 4, sparse=sparse), nn.Linear(4, 3)


def train(sparse: bool, batches: list[torch.Tensor], most: float = 0.1) -> tuple[nn.Embedding, nn.Linear, list[float]]:
    embedding, linear = parts(sparse)
    parameters = [*embedding.parameters(), *linear.parameters()]
    optimizer = (RowSparseAdamW if sparse else torch.optim.AdamW)(parameters, lr=0.01, weight_decay=0.1)
    norms = []

    def closure(batch: torch.Tensor) -> torch.Tensor:
        optimizer.zero_grad()
        loss = linear(embedding(batch)).square().mean()
        loss.backward()
        norms.append(float(clip_gradients(parameters, most) if sparse else nn.utils.clip_grad_norm_(parameters, most)))
        return loss

    for batch in batches:
        optimizer.step(partial(closure, batch))
    return embedding, linear, norms


def test_it_is_adamw_where_every_batch_has_every_row() -> None:
    generator = torch.Generator().manual_seed(1)
    batches = [torch.cat([torch.randperm(20, generator=generator), torch.tensor([3, 3])]) for _ in range(5)]
    sparse, dense = train(True, batches), train(False, batches)
    for one, other in zip(sparse[:2], dense[:2], strict=True):
        for parameter, expected in zip(one.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(parameter, expected)
    assert sparse[2] == pytest.approx(dense[2])


def test_rows_that_no_batch_has_stand_still() -> None:
    before = parts(True)[0].weight.detach().clone()
    after = train(True, [torch.tensor([1, 2]), torch.tensor([2, 7])])[0].weight
    changed = (after != before).any(dim=1).nonzero().flatten().tolist()
    assert changed == [1, 2, 7]
