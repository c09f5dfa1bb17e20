"""From a model's logits to a task's metrics; what teacher and student share."""

import inspect
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nni_bertnas.data.sources import UNLABELLED
from nni_bertnas.data.tasks import METRICS, TaskSpec


def model_inputs(model: nn.Module, batch: dict[str, Any]) -> dict[str, Tensor]:
    """What a Hugging Face classifier takes of a batch, on its device; DistilBERT and its like know no token types."""
    device = next(model.parameters()).device
    inputs = {"input_ids": batch["input_ids"].to(device), "attention_mask": batch["mask"].long().to(device)}
    if "token_type_ids" in inspect.signature(model.forward).parameters:
        inputs["token_type_ids"] = batch["token_type_ids"].to(device)
    return inputs


def predictions_of(logits: Tensor) -> Tensor:
    """`(batch, num_labels)` -> `(batch,)`: class numbers, or scores where there is one output."""
    return logits[:, 0].float() if logits.shape[1] == 1 else logits.argmax(-1)


def label_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean loss of the rows that have a label; 0 if none has.

    Args:
        logits: `(batch, num_labels)`; one output for regression.
        labels: `(batch,)`; int64 class numbers, `UNLABELLED` for none, give cross-entropy; float32 scores, not-a-number
            for none, the mean squared error.
    """
    if labels.is_floating_point():
        known = ~labels.isnan()
        return (logits[:, 0] - labels)[known].square().sum() / known.sum().clamp(min=1)
    total = F.cross_entropy(logits, labels, ignore_index=UNLABELLED, reduction="sum")
    return total / (labels != UNLABELLED).sum().clamp(min=1)


class Scorer:
    """Collects a split's predictions, batch by batch, and gives the task's metrics."""

    def __init__(self, spec: TaskSpec) -> None:
        self.spec = spec
        self._seen: list[tuple[Tensor, Tensor]] = []

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """`(batch, num_labels)`, `(batch,)`."""
        self._seen.append((predictions_of(logits).cpu(), labels.cpu()))

    def scores(self) -> dict[str, float]:
        """Every metric of the task over all that was added since the last call."""
        predictions, labels = (torch.cat(part).numpy() for part in zip(*self._seen, strict=True))
        self._seen.clear()
        return {name: METRICS[name](labels, predictions) for name in self.spec.metrics}


@torch.inference_mode()
def evaluate_classifier(model: nn.Module, loader: Iterable[dict[str, Any]], spec: TaskSpec) -> dict[str, float]:
    """The metrics of a Hugging Face classifier in eval mode over batches of token ids, token types, mask, labels."""
    scorer = Scorer(spec)
    for batch in loader:
        scorer.add(model(**model_inputs(model, batch)).logits, batch["labels"])
    return scorer.scores()
