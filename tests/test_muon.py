import pytest
import torch
from torch import nn

from nni_bertnas.training.muon import MuonAdamW
from nni_bertnas.training.trainer import adamw_linear


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
