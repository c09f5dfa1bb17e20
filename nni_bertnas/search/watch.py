"""Watching and guarding a differentiable search: what its architecture weights do, and against collapse."""

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from nni.nas.nn.pytorch import LayerChoice
from torch import Tensor, nn
from torch.nn import functional as F

from nni_bertnas.training.trainer import pl
from search_space.cells import Architecture
from search_space.operations import parameter_free

_log = logging.getLogger(__name__)


def architecture_weights(supernet: nn.Module) -> dict[str, tuple[list[str], Tensor]]:
    """Every decision's options and their architecture weights, `(num_options,)`, as NNI's supernet holds them."""
    found: dict[str, tuple[list[str], Tensor]] = {}
    module: Any
    for module in supernet.modules():
        if hasattr(module, "_arch_alpha"):
            names = module.names if hasattr(module, "names") else [str(n) for n in range(module.n_candidates)]
            found.setdefault(module.label, (list(names), module._arch_alpha))
    return found


def probabilities(supernet: nn.Module) -> dict[str, dict[str, float]]:
    """Every decision's options with their probabilities, the softmax of the architecture weights.

    Not NNI's `export_probs`, which draws Gumbel noise anew each time. Of independent gates it says the order alone.
    """
    return {
        label: dict(zip(names, alpha.detach().softmax(0).tolist(), strict=True))
        for label, (names, alpha) in architecture_weights(supernet).items()
    }


def entropy(values: Sequence[float]) -> float:
    """Shannon entropy in nats."""
    distribution = torch.tensor(values)
    return float(torch.special.entr(distribution).sum())


class ArchitectureWatch(pl.Callback):
    """Logs probabilities, entropy and gradient norms every epoch; stops a search whose ranking stands still.

    Args:
        stable_epochs: Epochs that the most probable option of every decision must have been the same (DARTS+, arXiv
            1909.06035, criterion 2*); None never stops.
        warmup_epochs: In which the architecture does not move.
    """

    everywhere = True  # that all ranks stop together

    def __init__(self, stable_epochs: int | None = None, warmup_epochs: int = 0) -> None:
        self.stable_epochs = stable_epochs
        self.warmup_epochs = warmup_epochs
        self._leaders: list[str] = []
        self._stable = 0
        self._norms: dict[str, list[float]] = {}

    def state_dict(self) -> dict[str, Any]:
        """Called when a search is saved."""
        return {"leaders": self._leaders, "stable": self._stable}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Called when it goes on."""
        self._leaders, self._stable = state_dict["leaders"], state_dict["stable"]

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Called by Lightning."""
        name = "architecture" if getattr(optimizer, "is_arch_optimizer", False) else "weight"
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if gradients:
            self._norms.setdefault(name, []).append(float(nn.utils.get_total_norm(gradients)))

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Called by Lightning."""
        for name, norms in self._norms.items():
            trainer.callback_metrics[f"{name}_gradient_norm"] = torch.tensor(norms).mean()
        self._norms = {}
        current = probabilities(pl_module)
        if not current:
            return
        entropies = [entropy(list(choice.values())) for choice in current.values()]
        trainer.callback_metrics["architecture_entropy"] = torch.tensor(entropies).mean()
        for label, choice in current.items():
            for name, value in choice.items():
                trainer.callback_metrics[f"probability/{label}/{name}"] = torch.tensor(value)
        leaders = [max(choice, key=choice.__getitem__) for choice in current.values()]
        moves = trainer.current_epoch >= self.warmup_epochs
        self._stable = self._stable + 1 if moves and leaders == self._leaders else 0
        self._leaders = leaders
        if self.stable_epochs is not None and self._stable >= self.stable_epochs:
            _log.info("the ranking has stood still for %d epochs; the search ends early", self._stable)
            trainer.should_stop = True


class OperationDropout(pl.Callback):
    """Drops the output of parameter-free operations in the supernet, less and less (P-DARTS, arXiv 1904.12760, 3.3).

    Early on, pools and identities learn faster than what has weights first to train; dropout takes that lead away.

    Args:
        rate: In the first epoch; falls linearly to 0 after the last.
    """

    everywhere = True

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self._now = rate

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Called by Lightning."""
        for choice in _mixed_layers(pl_module):
            for name in choice.names:
                if next(choice[name].parameters(), None) is None:
                    choice[name].register_forward_hook(self._drop)

    def _drop(self, module: nn.Module, arguments: Any, output: Tensor) -> Tensor:
        return F.dropout(output, self._now, training=module.training)

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Called by Lightning."""
        self._now = self.rate * (1 - trainer.current_epoch / trainer.max_epochs)


def _mixed_layers(supernet: nn.Module) -> Iterator[Any]:
    return (module for module in supernet.modules() if isinstance(module, LayerChoice))


def collapse(architecture: Architecture, hidden_size: int) -> str | None:
    """In words, whether an architecture is of parameter-free operations alone, a bag of embeddings; None if not."""
    operations = [choice for label, choice in architecture.items() if isinstance(choice, str) and "_skip_" not in label]
    if operations and all(parameter_free(name, hidden_size) for name in operations):
        return f"collapsed to parameter-free operations: {', '.join(operations)}"
    return None
