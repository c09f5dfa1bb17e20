"""What is added to the loss that moves the architecture of a differentiable search; each takes the supernet."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nni_bertnas.search.mixtures import Mixture
from nni_bertnas.search.watch import architecture_weights
from nni_bertnas.training.trainer import pl

Penalty = Callable[[nn.Module], Tensor]


class EfficiencyPenalty:
    """The expected cost of the architecture, differentiable, added to the loss that moves it.

    sum over decisions and operations of probability × cost, over the sum of every decision's greatest cost, times a
    weight (AdaBERT's efficiency term, arXiv 2001.04246; ProxylessNAS, arXiv 1812.00332, section 3.3). NNI 3.0's own
    penalty is not used: it reads its probabilities as plain numbers, so that no gradient flows from it.

    Args:
        costs: Of every operation.
        weight: Of the term; the loss without it is a mean squared error over the target's variance.
    """

    def __init__(self, costs: Mapping[str, float], weight: float) -> None:
        self.costs = costs
        self.weight = weight

    def __call__(self, supernet: nn.Module) -> Tensor:
        """The weighted term, a scalar between 0 and the weight."""
        expected, most = torch.zeros(()), 0.0
        for names, alpha in architecture_weights(supernet).values():
            if all(name in self.costs for name in names):  # not the choice of an input
                cost = torch.tensor([self.costs[name] for name in names], device=alpha.device)
                expected = expected.to(alpha.device) + (alpha.softmax(0) * cost).sum()
                most += float(cost.max())
        return self.weight * expected / (most or 1.0)


class BetaDecay(pl.Callback):
    """The mean over decisions of log sum exp of the architecture weights (β-DARTS, arXiv 2203.01665).

    It holds the softmax of the weights close together, so that what learns fast does not run away with the search.

    Args:
        weight: Of the term at the search's end; it rises linearly from 0, a step at a time.
    """

    everywhere = True

    def __init__(self, weight: float) -> None:
        self.weight = weight
        self._now = 0.0

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Called by Lightning."""
        done = trainer.current_epoch + batch_idx / trainer.num_training_batches
        self._now = self.weight * done / trainer.max_epochs

    def __call__(self, supernet: nn.Module) -> Tensor:
        """The weighted term, a scalar."""
        weights = [alpha for _, alpha in architecture_weights(supernet).values()]
        return self._now * torch.stack([alpha.logsumexp(0) for alpha in weights]).mean()


class ZeroOne:
    """Minus the mean over all operations of (gate - 1/2)² (FairDARTS, arXiv 1911.12126).

    Gates that are independent need not decide for one operation; this pushes each of them to 0 or to 1.

    Args:
        weight: Of the term.
    """

    def __init__(self, weight: float = 10.0) -> None:
        self.weight = weight

    def __call__(self, supernet: nn.Module) -> Tensor:
        """The weighted term, a scalar between minus a quarter of the weight and 0."""
        gates = {module.label: module.gates() for module in supernet.modules() if isinstance(module, Mixture)}
        return -self.weight * (torch.cat(list(gates.values())) - 0.5).square().mean()
