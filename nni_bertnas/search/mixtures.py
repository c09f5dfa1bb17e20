"""The mixture of operations that a DARTS supernet runs where one is to be chosen, as the options have it."""

from collections.abc import Mapping
from typing import Any

import torch
from nni.nas.nn.pytorch import LayerChoice
from nni.nas.oneshot.pytorch.supermodule.differentiable import DifferentiableMixedLayer
from torch import Tensor, nn

from nni_bertnas.ranks import from_first

_SILENT = 1e-6  # a root mean square of outputs, up to which there is nothing to be scaled


class Mixture(DifferentiableMixedLayer):
    """A sum of operations, each weighted by its gate.

    In a plain mixture those of few parameters are the first to do the work, others learn only what is left over, and
    none learns to stand alone, as one of them will. Against that:

    - Operations are left out of every step of training (DropNAS, arXiv 2201.11679). The gates of those that run are the
      softmax of their weights; one always runs.
    - Gates are independent, each the sigmoid of its weight (FairDARTS, arXiv 1911.12126).
    - Outputs are scaled to one root mean square, the mean of theirs, so that the gate alone says how much of an
      operation there is. DARTS does this by batch normalisation without scale behind every operation (arXiv 1806.09055,
      appendix A.1.1).

    Args:
        candidates: The operations by name.
        alpha: Their architecture weights.
        label: Of the decision.
        dropout: How probable it is that an operation is left out of a step.
        independent: Whether gates are sigmoids.
        matched: Whether outputs are scaled.
    """

    def __init__(
        self,
        candidates: Mapping[str, nn.Module],
        alpha: Tensor,
        label: str,
        *,
        dropout: float = 0.0,
        independent: bool = False,
        matched: bool = False,
    ) -> None:
        super().__init__(dict(candidates), alpha, nn.Sigmoid() if independent else nn.Softmax(-1), label)
        self.dropout = dropout
        self.matched = matched

    def gates(self, numbers: list[int] | None = None) -> Tensor:
        """`(num_operations,)`: the gates of all operations, or of some that run without the others."""
        gates: Tensor = self._softmax(self._arch_alpha if numbers is None else self._arch_alpha[numbers])
        return gates

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """As any of its operations."""
        numbers = list(range(len(self.names)))
        if self.training and self.dropout:
            draws = from_first(torch.rand(len(self.names)))
            kept = [n for n, draw in enumerate(draws.tolist()) if draw >= self.dropout]
            numbers = kept or [int(draws.argmax())]
        outputs = [self[self.names[number]](x, mask) for number in numbers]
        gates = self.gates(numbers)
        if self.matched:
            sizes = torch.stack([(output[mask].square().mean() + _SILENT**2).sqrt() for output in outputs])
            loud = sizes > 2 * _SILENT
            gates = torch.where(loud, gates * sizes[loud].mean() / sizes, gates) if loud.any() else gates
        mixed: Tensor = self._reduction(outputs, gates)
        return mixed


def mixed(module: Any, name: str, memo: Any, more: Any, **options: Any) -> Any:
    """NNI mutation hook: a :class:`Mixture` with these options where an operation is chosen."""
    if type(module) is LayerChoice:
        return Mixture(module.candidates, memo[module.label], module.label, **options), True
    return None
