from functools import partial

import pytest
import torch
from torch import nn

from nni_bertnas.training.optimizers import MuonAdamW, RowSparseAdamW, adamw_linear, clip_gradients


def test_matrices_take_muon_and_the_rest_adamw() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 4), nn.Conv1d(4, 4, 3))
    optimizer = adamw_linear(module.parameters(), 0.01, 0.0, 0.5, 4, MuonAdamW)["optimizer"]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)
    assert [group["lr"] for part in optimizer.parts for group in part.param_groups] == [0.005, 0.005]
    before = [parameter.detach().clone() for parameter in module.parameters()]
    for parameter in module.parameters():
        parameter.grad = torch.randn_like(parameter)
    assert optimizer.step(lambda: torch.tensor(3.0)) == 3.0
    schedule.step()
    weight, *others = [old - new for old, new in zip(before, module.parameters(), strict=True)]
    for change in others:  # AdamW's first step is its rate
        assert change.abs().flatten().tolist() == pytest.approx([0.005] * change.numel(), rel=1e-3)
    # Muon's is nearly orthogonal: all singular values about 0.2 * sqrt(6) * rate.
    values = torch.linalg.svdvals(weight.float()) / (0.2 * 6**0.5 * 0.005)
    assert values.min() > 0.6 and values.max() < 1.3


def test_a_module_without_matrices_or_without_others() -> None:
    for module in (nn.Conv1d(2, 2, 3), nn.Linear(2, 2, bias=False)):
        optimizer = MuonAdamW(module.parameters(), 0.1, 0.0)
        next(module.parameters()).grad = torch.ones_like(next(module.parameters()))
        before = next(module.parameters()).detach().clone()
        optimizer.step()
        assert not torch.equal(before, next(module.parameters())) and len(optimizer.parts) == 1


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
