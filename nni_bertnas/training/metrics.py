"""From a model's logits to a task's metrics; what teacher and student share."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nni_bertnas import ranks
from nni_bertnas.data.batches import Batch, model_inputs
from nni_bertnas.data.label_sets import indicators
from nni_bertnas.data.metrics import METRICS, OF_LABEL, f1_by_label, standard_error
from nni_bertnas.data.tasks import TaskSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def predictions_of(logits: Tensor, *, sets: bool = False) -> Tensor:
    """What logits say.

    Args:
        logits: `(batch, num_labels)`.
        sets: Whether a row may have any number of labels.

    Returns:
        `(batch,)`: class numbers, or scores where there is one output; of sets `(batch, num_labels)`, 1 for every label
        that is likelier than not.
    """
    if sets:
        return (logits > 0).long()
    return logits[:, 0].float() if logits.shape[1] == 1 else logits.argmax(-1)


class Scorer:
    """Collects a split's predictions, batch by batch, and gives the task's metrics.

    Args:
        spec: Of the task.
        noise: Whether the standard error of its metric is found, too.

    Attributes:
        noise: That of the last scores; 0 where none is found.
    """

    def __init__(self, spec: TaskSpec, *, noise: bool = False) -> None:
        self.spec, self._noisy, self.noise = spec, noise, 0.0
        self._seen: list[tuple[Tensor, Tensor]] = []

    def add(self, logits: Tensor, labels: Tensor | None) -> None:
        """`(batch, num_labels)`, `(batch,)`."""
        assert labels is not None
        sets = self.spec.multi_label
        truth = indicators(labels.cpu(), logits.shape[1]) if sets else labels.cpu()
        self._seen.append((predictions_of(logits, sets=sets).cpu(), truth))

    def scores(self, label_names: Sequence[str] = ()) -> dict[str, float]:
        """Every metric of the task over all that was added since the last call.

        Args:
            label_names: Of sets, for the F1 of each, `f1 of NAME`.
        """
        seen = ranks.gathered(self._seen)
        predictions, labels = (torch.cat(part).numpy() for part in zip(*seen, strict=True))
        self._seen.clear()
        if self._noisy:
            self.noise = standard_error(self.spec.metric, labels, predictions)
        found = {name: METRICS[name].compute(labels, predictions) for name in self.spec.metrics}
        if self.spec.multi_label and label_names:
            of_labels = zip(label_names, f1_by_label(labels, predictions), strict=True)
            found |= {f"{OF_LABEL}{name}": value for name, value in of_labels}
        return found


@torch.inference_mode()
def evaluate_classifier(model: "PreTrainedModel", loader: Iterable[Batch], spec: TaskSpec) -> dict[str, float]:
    """The metrics of a classifier in eval mode over batches of token ids, token types, mask, labels."""
    scorer = Scorer(spec)
    for batch in loader:
        scorer.add(model(**model_inputs(model, batch)).logits, batch.labels)
    return scorer.scores(list(model.config.id2label.values()))
