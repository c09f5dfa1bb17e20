"""A Lightning trainer whose steps all ranks of :mod:`~nni_bertnas.ranks` make together.

A batch is the one that a single process would have, a part of it on every rank; losses are means over what all ranks
have. So a study's batch sizes, schedules and results do not depend on how many processes there are, but for what each
draws by itself, as dropout.
"""

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments import LightningEnvironment
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.utilities.combined_loader import CombinedLoader

from nni_bertnas import ranks
from nni_bertnas.data.batches import of_rank
from nni_bertnas.data.models import without_hooks
from nni_bertnas.machine import best_device


class _Environment(LightningEnvironment):
    """Lightning starts no processes: they are there."""

    @property
    def creates_processes_externally(self) -> bool:
        """Called by Lightning."""
        return True

    def local_rank(self) -> int:
        """Called by Lightning."""
        return ranks.rank()


class _Strategy(DDPStrategy):
    """Lightning's DDP without torch's wrapper around the module, which knows no sparse rows and no step without a loss.

    Gradients are averaged after each backward pass instead, by :func:`~nni_bertnas.ranks.average_gradients`.
    """

    def _configure_launcher(self) -> None:
        self._launcher = None

    def setup_distributed(self) -> None:
        """Called by Lightning; it would join the processes and set all seeds to the same."""
        self.set_world_ranks()

    def configure_ddp(self) -> None:
        """Called by Lightning, to wrap the module."""

    def post_backward(self, closure_loss: torch.Tensor) -> None:
        """Called by Lightning."""
        assert self.lightning_module is not None
        ranks.average_gradients(self.lightning_module.parameters())


class RankTrainer(pl.Trainer):
    """Lightning's trainer; where other ranks are active, they train with this process.

    Callbacks are rank 0's alone, but for Lightning's early stopping and those that say `everywhere = True`.

    Args:
        options: Lightning's.
    """

    def __init__(self, **options: Any) -> None:
        self._options, self._others = options, ranks.active()
        super().__init__(**options, **(_together(self._others.size) if self._others else {}))
        if self._others:
            _leave_signals(self)

    def fit(self, model: Any, train_dataloaders: Any = None, val_dataloaders: Any = None, **named: Any) -> None:
        """Train a module, in place in this process; the arguments are Lightning's."""
        loaders = train_dataloaders, val_dataloaders
        if self._others is None:
            super().fit(model, *loaders, **named)
            return
        options = self._options | {"callbacks": list(filter(_everywhere, self._options.get("callbacks") or ()))}
        seed, model = torch.initial_seed(), without_hooks(model.cpu())
        with self._others.working(_fit, seed, options, model, loaders, named), ranks.in_step():
            super().fit(model, *map(_of_this_rank, loaders), **named)


def _together(size: int) -> dict[str, Any]:
    return {
        "accelerator": best_device().type,
        "devices": size,
        "strategy": _Strategy(cluster_environment=_Environment()),
        "use_distributed_sampler": False,
    }


def _leave_signals(trainer: pl.Trainer) -> None:
    """Whoever started the training ends it: at SIGTERM Lightning would call the other ranks out of the signal's
    handler, in the middle of what they do together, and wait for ever.
    """
    trainer._signal_connector.register_signal_handlers = lambda: None


def _everywhere(callback: pl.Callback) -> bool:
    return isinstance(callback, pl.callbacks.EarlyStopping) or getattr(callback, "everywhere", False)


def _fit(seed: int, options: Mapping[str, Any], model: Any, loaders: tuple[Any, Any], named: Mapping[str, Any]) -> None:
    """What the other ranks do while rank 0 trains."""
    with ranks.in_step():
        torch.manual_seed(seed + ranks.rank())  # dropout is each rank's own
        trainer = pl.Trainer(**options, **_together(ranks.size()))
        _leave_signals(trainer)
        trainer.fit(model, *map(_of_this_rank, loaders), **named)


def _of_this_rank(loader: Any) -> Any:
    """A loader of this rank's part of every batch; NNI's loaders are several in one."""
    if loader is None:
        return None
    if isinstance(loader, dict):
        return {name: _of_this_rank(one) for name, one in loader.items()}
    if isinstance(loader, CombinedLoader):
        loader.flattened = [_of_this_rank(one) for one in loader.flattened]
        return loader
    return of_rank(loader, ranks.rank(), ranks.size())
