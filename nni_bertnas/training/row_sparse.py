"""Training an embedding at the cost of the rows that a batch touches, not of the whole matrix."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn


class RowSparseAdamW(torch.optim.AdamW):
    """AdamW that, of a parameter with a sparse gradient, updates the rows in that gradient alone.

    The moments and the decay of all other rows stand still, as in torch's SparseAdam, which has no decay (Kingma and
    Ba, arXiv 1412.6980, algorithm 1; decay: Loshchilov and Hutter, arXiv 1711.05101).
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Called by Lightning, with a closure that computes the gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and parameter.grad.is_sparse:
                    self._step_rows(parameter, group)
                    parameter.grad = None  # so that AdamW leaves it alone
        super().step()
        return loss

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
