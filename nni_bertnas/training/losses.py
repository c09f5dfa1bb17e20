"""Distillation losses and the block score. Masked positions never count."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def masked_mse(student: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error over unmasked positions and hidden units.

    Args:
        student: `(batch, seq, hidden)`.
        target: `(batch, seq, hidden)`.
        mask: `(batch, seq)`, bool.

    Returns:
        A scalar.
    """
    keep = mask.unsqueeze(-1).to(student.dtype)
    return ((student - target).square() * keep).sum() / (keep.sum() * student.shape[-1])


def masked_absolute_sum(student: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Sum of absolute errors over unmasked positions and hidden units; shapes as in :func:`masked_mse`.

    Divided by the number of summed entries and by std(target) this is DNA's relative L1 block score
    (arXiv 1911.13053), which can be compared between blocks.
    """
    return (student - target).abs().masked_select(mask.unsqueeze(-1)).sum()


def logit_mse(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Mean squared error of logits over the temperature, `(batch, num_labels)`; mean over all entries."""
    return F.mse_loss(student / temperature, teacher / temperature)


def soft_cross_entropy(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Cross-entropy against the softened teacher, times temperature² (Hinton et al., arXiv 1503.02531, section 2).

    Logits are `(batch, num_labels)`; mean over rows.
    """
    soft = (teacher / temperature).softmax(dim=-1)
    return F.cross_entropy(student / temperature, soft) * temperature**2


LOGIT_LOSSES: Mapping[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "mse": logit_mse,
    "soft_cross_entropy": soft_cross_entropy,
}


def hidden_loss(
    students: Sequence[Tensor], targets: Sequence[Tensor], variances: Sequence[float], mask: Tensor
) -> Tensor:
    """Mean over block edges of the masked MSE over the target's variance.

    Args:
        students: One `(batch, seq, hidden)` per edge, in the teacher's width.
        targets: The teacher's, alike.
        variances: Of each edge's target over the data.
        mask: `(batch, seq)`, bool.
    """
    losses = [
        masked_mse(student, target, mask) / variance
        for student, target, variance in zip(students, targets, variances, strict=True)
    ]
    return torch.stack(losses).mean()


def reduced_rank_regression(x: Tensor, y: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The best linear map of a given rank from x to y, as a map into `rank` units and one out of them.

    A cell starts from it, so that its layers only learn what no linear map gives (Izenman, "Reduced-rank
    regression for the multivariate linear model", 1975).

    Args:
        x: `(rows, teacher_hidden)`.
        y: `(rows, teacher_hidden)`.
        rank: Units between the maps, at most teacher_hidden.

    Returns:
        Weight `(rank, teacher_hidden)` and bias `(rank,)` into, weight `(teacher_hidden, rank)` and bias
        `(teacher_hidden,)` out, as `nn.Linear` holds them.
    """
    x_mean, y_mean = x.mean(0), y.mean(0)
    x, y = (x - x_mean).double(), (y - y_mean).double()
    gram = x.T @ x
    ridge = 1e-6 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    full = torch.linalg.solve(gram + ridge, x.T @ y)
    _, directions = torch.linalg.eigh(full.T @ gram @ full)  # of the fitted values
    out = directions[:, -rank:]
    into = (full @ out).T.to(x_mean.dtype)
    return into, -into @ x_mean, out.to(x_mean.dtype), y_mean
