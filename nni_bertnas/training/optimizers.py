"""Optimisers and the schedule that all share. One row of OPTIMIZERS each."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def _loss_of(closure: Callable[[], Any] | None) -> Any:
    """What a closure gives, once it has computed the gradients."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


class MuonAdamW(torch.optim.Optimizer):
    """torch's Muon (Jordan et al., 2024) on parameters of two dimensions, AdamW on all others.

    Muon's rate is scaled so that an update is as large as one of AdamW (Liu et al., arXiv 2502.16982, section 2.2), so
    that both share one. It multiplies matrices in bfloat16, which is slow on CPUs that have no instructions for it.

    Args:
        params: Parameters.
        lr: Rate.
        weight_decay: Decoupled.
        fused: Of AdamW.
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float, weight_decay: float, fused: bool = True) -> None:
        params = list(params)
        matrices = [parameter for parameter in params if parameter.ndim == 2]
        others = [parameter for parameter in params if parameter.ndim != 2]
        self.parts: list[torch.optim.Optimizer] = []
        if matrices:
            scale = "match_rms_adamw"
            self.parts.append(torch.optim.Muon(matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn=scale))
        if others:
            self.parts.append(torch.optim.AdamW(others, lr=lr, weight_decay=weight_decay, fused=fused))
        super().__init__([group for part in self.parts for group in part.param_groups], {})  # shared with the parts

    def state_dict(self) -> dict[str, Any]:
        """Of the parts, which hold the moments."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Of the parts; the groups stay shared with them."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups[:] = [group for part in self.parts for group in part.param_groups]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Called by Lightning, with a closure that computes the gradients."""
        loss = _loss_of(closure)
        for part in self.parts:
            part.step()
        return loss


class RowSparseAdamW(torch.optim.AdamW):
    """AdamW that, of a parameter with a sparse gradient, updates the rows in that gradient alone.

    The moments and the decay of all other rows stand still, as in torch's SparseAdam, which has no decay (Kingma and
    Ba, arXiv 1412.6980, algorithm 1; decay: Loshchilov and Hutter, arXiv 1711.05101).
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Called by Lightning, with a closure that computes the gradients."""
        loss = _loss_of(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and parameter.grad.is_sparse:
                    self._step_rows(parameter, group)
                    parameter.grad = None  # so that AdamW leaves it alone
        super().step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """With whole steps, of which AdamW makes single numbers, and moments then differ in their last digits."""
        super().load_state_dict(state_dict)
        for state in self.state.values():
            if "first" in state:
                state["step"] = int(state["step"])

    def _step_rows(self, parameter: nn.Parameter, group: dict[str, Any]) -> None:
        gradient = parameter.grad.coalesce()  # type: ignore[union-attr]
        rows, values = gradient.indices()[0], gradient.values()
        state = self.state[parameter]
        if not state:
            state |= {"step": 0, "first": torch.zeros_like(parameter), "second": torch.zeros_like(parameter)}
        state["step"] += 1
        moments = []
        for name, power, beta in (("first", 1, group["betas"][0]), ("second", 2, group["betas"][1])):
            moment = state[name][rows].mul_(beta).add_(values**power, alpha=1 - beta)
            state[name][rows] = moment
            moments.append(moment / (1 - beta ** state["step"]))
        change = moments[0] / (moments[1].sqrt() + group["eps"])
        parameter[rows] = parameter[rows] * (1 - group["lr"] * group["weight_decay"]) - group["lr"] * change


def clip_gradients(parameters: Iterable[nn.Parameter], most: float) -> Tensor:
    """Scale all gradients so that their norm together is at most `most`; torch's own function takes no sparse ones.

    Returns:
        The norm before.
    """
    values = []
    for parameter in parameters:
        if parameter.grad is not None:
            if parameter.grad.is_sparse:
                parameter.grad = parameter.grad.coalesce()
                values.append(parameter.grad._values())
            else:
                values.append(parameter.grad)
    norm = torch.nn.utils.get_total_norm(values)
    torch._foreach_mul_(values, torch.clamp(most / (norm + 1e-6), max=1.0))
    return norm


OPTIMIZERS: Mapping[str, type[torch.optim.Optimizer]] = {"adamw": torch.optim.AdamW, "muon": MuonAdamW}


def adamw_linear(
    groups: Any,
    learning_rate: float,
    weight_decay: float,
    warmup: float,
    steps: int,
    kind: type[torch.optim.Optimizer] = torch.optim.AdamW,
) -> dict[str, Any]:
    """AdamW whose rate rises over the first `warmup` share of `steps` and then falls to 0, by step.

    Fused, as on CPU the other way allocates the size of each parameter several times over and passes over it.
    """
    optimizer = kind(groups, lr=learning_rate, weight_decay=weight_decay, fused=True)  # type: ignore[call-arg]
    # In mixed precision Lightning clips nothing for a fused optimizer, lest gradients are scaled; bfloat16's are not.
    optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
    rising = max(1, round(warmup * steps))

    def scale(step: int) -> float:
        return min((step + 1) / rising, max(0.0, (steps - step) / max(1, steps - rising)))

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, scale)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
