"""One-shot searches by several processes: what is drawn, rank 0 draws for all of them.

NNI's one-shot modules draw in every process by itself (its issue 5013), so that the ranks would train different paths
and no path on a whole batch.
"""

import torch
from nni.nas.oneshot.pytorch.supermodule.base import BaseSuperNetModule
from nni.nas.oneshot.pytorch.supermodule.differentiable import GumbelSoftmax
from nni.nas.strategy import GumbelDARTS
from torch import Tensor, distributed, nn

from nni_bertnas import ranks


def drawn_path(supernet: nn.Module) -> dict[str, object]:
    """What is drawn of every decision, by label; nothing where all options run."""
    modules = (module for module in supernet.modules() if isinstance(module, BaseSuperNetModule))
    return {module.label: module._sampled for module in modules if getattr(module, "_sampled", None) is not None}


def take_one_path(supernet: nn.Module) -> None:
    """Let all ranks run the path that rank 0 has drawn."""
    if ranks.size() == 1:
        return
    path = ranks.from_first(drawn_path(supernet))
    if path:
        for module in supernet.modules():
            if isinstance(module, BaseSuperNetModule):
                module.resample(memo=path)


class _SharedGumbel(GumbelSoftmax):
    """NNI's, with the noise that rank 0 has drawn."""

    def forward(self, inputs: Tensor) -> Tensor:
        """`(…, num_options)` to the like."""
        if ranks.size() == 1:
            shares: Tensor = super().forward(inputs)
            return shares
        noise = -torch.empty_like(inputs).exponential_().log()
        distributed.broadcast(noise, 0)
        return ((inputs + noise) / self.tau).softmax(self.dim)


class SharedGumbelDARTS(GumbelDARTS):
    """NNI's strategy over that."""

    def configure_softmax(self) -> nn.Module:
        """Called by NNI."""
        return _SharedGumbel()
