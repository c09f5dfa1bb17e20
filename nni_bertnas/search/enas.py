"""NNI's ENAS with its faults mended; needs tianshou and gym as they were in 2023."""

import contextlib
import io
from typing import Any

from nni.nas.oneshot.pytorch.sampling import EnasLightningModule
from nni.nas.strategy import ENAS

from nni_bertnas.data.batches import Batch


class EnasModule(EnasLightningModule):
    """NNI's, which expects batches as Lightning 2.0 gave them and clips no gradients.

    It also moves the learning rate in the controller's steps, and updates the controller whenever the number of samples
    so far is a multiple of `batches_per_update`: where an epoch ends on one, every step of the next epoch's weights
    updates it from the same old samples, until it gives a single architecture.

    Args:
        training_module: The evaluator's.
        gradient_clip: Norm, of the weights.
        options: NNI's own.
    """

    resumable = False  # its controller's optimiser and samples are tianshou's, and nothing of torch's

    def __init__(self, training_module: Any, *, gradient_clip: float, **options: Any) -> None:
        super().__init__(training_module, **options)
        self.gradient_clip = gradient_clip
        self.of_weights = True

    def training_step(self, batch: Batch, batch_idx: int) -> Any:
        """A step of the weights, or one sample of the controller."""
        self.of_weights = batch.part == "train"
        output = super().training_step((batch, "train" if self.of_weights else "val"), batch_idx)
        self._trajectory_counter %= self.batches_per_update
        return output

    def advance_optimization(self, loss: Any, batch_idx: int, *options: Any) -> None:
        """A step of the optimiser, clipped."""
        super().advance_optimization(loss, batch_idx, self.gradient_clip)

    def advance_lr_schedulers(self, batch_idx: int) -> None:
        """A step of the schedule, after a step of the weights alone."""
        if self.of_weights:
            super().advance_lr_schedulers(batch_idx)


class MendedENAS(ENAS):
    """NNI's strategy over :class:`EnasModule`.

    Args:
        gradient_clip: Norm, of the weights.
        options: NNI's own.
    """

    def __init__(self, *, gradient_clip: float, **options: Any) -> None:
        super().__init__(**options)
        self.gradient_clip = gradient_clip

    def configure_oneshot_module(self, training_module: Any) -> EnasModule:
        """Called by NNI."""
        with contextlib.redirect_stderr(io.StringIO()):  # it says that nobody maintains it any more
            import gym  # noqa: F401
        names = ("batches_per_update", "reward_metric_name", "policy_fn", "update_kwargs", "warmup_epochs")
        options = {name: getattr(self, name) for name in names}
        return EnasModule(
            training_module,
            gradient_clip=self.gradient_clip,
            log_prob_every_n_step=self.batches_per_update,
            **options,
        )
