"""Muon for the matrices of a module, AdamW for everything else, as one optimizer."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn


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

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Called by Lightning, with a closure that computes the gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss
