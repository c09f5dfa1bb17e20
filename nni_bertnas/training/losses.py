"""What training minimises, of whole students and of cells. Masked positions never count. One row of LOSSES each."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from nni_bertnas import ranks
from nni_bertnas.data.batches import Batch
from nni_bertnas.data.label_sets import indicators
from nni_bertnas.data.rows import UNLABELLED
from nni_bertnas.training.probes import Probes
from nni_bertnas.training.relations import Attention, divergence

_PART = 32  # units of a part whose relations are compared


@dataclass(frozen=True, kw_only=True)
class Output:
    """What a student, or cells, made of a batch.

    Attributes:
        logits: `(batch, num_labels)`; None of cells.
        vectors: One per text, in the teacher's width, `(sides * batch, teacher_hidden)`.
        hidden: At the exit of every block, in the teacher's width, each `(batch, seq, teacher_hidden)`.
        attention: Query, key and value of every block's first attention, `(3, batch, seq, width)`; None where it has
            none.
    """

    logits: Tensor | None = None
    vectors: Tensor | None = None
    hidden: Sequence[Tensor] = ()
    attention: Sequence[Tensor | None] = ()


@dataclass(frozen=True, kw_only=True)
class Balance:
    """What labels are, and how their loss makes up for rare ones.

    Attributes:
        weights: Of every class, `(num_labels,)`; of sets, of a label's presence against its absence; None: all count
            alike.
        offsets: Added to the logits, `(num_labels,)` (logit adjustment, Menon et al., arXiv 2007.07314, equation 10);
            None: nothing is.
        sets: Whether a row has a set of labels, see :mod:`~nni_bertnas.data.label_sets`.
    """

    weights: Tensor | None = None
    offsets: Tensor | None = None
    sets: bool = False

    @classmethod
    def of(cls, kind: str, labels: Sequence[float], num_labels: int, *, sets: bool = False) -> "Balance":
        """That of a `task.balance`, for the labels of train."""
        if kind == "off":
            return cls(sets=sets)
        if sets:
            present = indicators(torch.tensor(labels, dtype=torch.int64), num_labels).float().mean(0)
            odds = present.clamp(1 / len(labels), 1 - 1 / len(labels)).logit()
            return cls(weights=(-odds).exp(), sets=True) if kind == "weights" else cls(offsets=odds, sets=True)
        counts = torch.bincount(torch.tensor(labels, dtype=torch.int64), minlength=num_labels).clamp(min=1)
        share = counts / counts.sum()
        return cls(weights=1 / (num_labels * share)) if kind == "weights" else cls(offsets=share.log())


@dataclass(frozen=True, kw_only=True)
class Scale:
    """What losses are measured by.

    Attributes:
        variances: Of the teacher's hidden states at the exit of every block, over the data.
        temperature: Over which logits are taken.
        balance: Of the labels.
        probes: Of the exit of every block.
        attention: Of the teacher, behind the entry of every block.
    """

    variances: Sequence[float] = ()
    temperature: float = 1.0
    balance: Balance = Balance()
    probes: Probes | None = None
    attention: Attention | None = None


@dataclass(frozen=True, kw_only=True)
class Loss:
    """One loss.

    Attributes:
        compute: Takes what the student made, the batch with the targets, and the scale; gives a scalar.
        count: Takes a batch and the scale; how many the scalar is a mean over.
        needs: What a batch must have for it; others are passed over. Cells have hidden states alone.
        of_classes: Whether it is for class probabilities, and so not for regression.
    """

    compute: Callable[[Output, Batch, Scale], Tensor]
    count: Callable[[Batch, Scale], Tensor]
    needs: Literal["logits", "vectors", "hidden", "entries", "labels"]
    of_classes: bool = False

    def applies(self, batch: Batch) -> bool:
        """Whether a batch has what it needs."""
        targets = getattr(batch, self.needs)
        return targets is not None and len(targets) > 0


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


def hidden_mse(output: Output, batch: Batch, scale: Scale) -> Tensor:
    """Mean over block exits of the masked MSE over the target's variance, so that blocks are comparable."""
    mask = batch.mask if batch.hidden_mask is None else batch.hidden_mask
    losses = [
        masked_mse(student, target, mask) / variance
        for student, target, variance in zip(output.hidden, batch.hidden, scale.variances, strict=True)
    ]
    return torch.stack(losses).mean()


def hidden_relation(output: Output, batch: Batch, scale: Scale) -> Tensor:
    """Mean over block exits of how differently the hidden states of a text relate to one another.

    Kullback-Leibler divergence between the softmaxes of scaled dot products, in parts of 32 units, as of the value
    relation of MiniLM (Wang et al., arXiv 2002.10957, equations 6 to 8), with hidden states for values, as not every
    student has values. Mean over word pieces and parts.
    """
    mask = batch.mask if batch.hidden_mask is None else batch.hidden_mask
    losses = []
    for student, target in zip(output.hidden, batch.hidden, strict=True):
        own, wanted = (_relations(x, mask) for x in (student, target))  # (batch, parts, seq, seq), logarithms
        divergence = (wanted.exp() * (wanted - own)).masked_fill(~mask[:, None, None], 0.0).sum(-1)
        losses.append(divergence.mean(1)[mask].mean())
    return torch.stack(losses).mean()


def _relations(x: Tensor, mask: Tensor) -> Tensor:
    parts = x.unflatten(-1, (max(1, x.shape[-1] // _PART), -1)).transpose(1, 2)
    products = parts @ parts.transpose(2, 3) / parts.shape[-1] ** 0.5
    return products.masked_fill(~mask[:, None, None], torch.finfo(x.dtype).min).log_softmax(-1)


def attention_relation(output: Output, batch: Batch, scale: Scale) -> Tensor:
    """How differently query and key of a block's attention relate to one another (MiniLM, equation 3)."""
    return _attention_divergence(output, batch, scale, (0, 1))


def value_relation(output: Output, batch: Batch, scale: Scale) -> Tensor:
    """How differently the values of a block's attention relate to one another (MiniLM, equations 6 to 8)."""
    return _attention_divergence(output, batch, scale, (2, 2))


def _attention_divergence(output: Output, batch: Batch, scale: Scale, parts: tuple[int, int]) -> Tensor:
    """Mean over the blocks that have attention of the divergence from the teacher's next layer; 0 if none has."""
    assert scale.attention is not None
    mask = batch.mask if batch.hidden_mask is None else batch.hidden_mask
    losses = []
    for number, (made, entry) in enumerate(zip(output.attention, batch.entries, strict=True)):
        if made is not None and entry is not None:
            target = scale.attention.project(number, entry)
            own, wanted = ((x[parts[0]], x[parts[1]]) for x in (made, target))
            losses.append(divergence(own, wanted, mask, scale.attention.heads))
    return torch.stack(losses).mean() if losses else 0.0 * output.hidden[0].sum()


def probe(output: Output, batch: Batch, scale: Scale) -> Tensor:
    """How differently the probe of a block's exit reads the student and the teacher, by the probe's quality.

    Cross-entropy against the probe's soft labels (AdaBERT, arXiv 2001.04246, equations 2 and 3), less the entropy of
    these, so that 0 is the least; of scores the squared error. Mean over rows.
    """
    assert scale.probes is not None
    mask, probes = batch.mask if batch.hidden_mask is None else batch.hidden_mask, scale.probes
    losses = []
    for number, (student, target) in enumerate(zip(output.hidden, batch.hidden, strict=True)):
        own, wanted = (probes.read(number, x, mask) for x in (student, target))
        if own.shape[1] == 1:
            losses.append(F.mse_loss(own, wanted))
        else:
            losses.append(F.kl_div(own.log_softmax(-1), wanted.log_softmax(-1), log_target=True, reduction="batchmean"))
    return (torch.stack(losses) * probes.quality.to(losses[0])).sum()


def logit_mse(output: Output, batch: Batch, scale: Scale) -> Tensor:
    """Mean squared error of logits over the temperature; mean over all entries of rows that the teacher answers."""
    made, targets = _answered(output, batch)
    return (made - targets).square().sum() / max(1, targets.numel()) / scale.temperature**2


def _answered(output: Output, batch: Batch) -> tuple[Tensor, Tensor]:
    """The logits of the rows that have the teacher's: the student's and these. Of half a pair they are no numbers."""
    assert output.logits is not None and batch.logits is not None
    known = ~batch.logits[:, 0].isnan()
    return output.logits[known], batch.logits[known]


def soft_cross_entropy(output: Output, batch: Batch, scale: Scale) -> Tensor:
    """Cross-entropy against the softened teacher, times temperature² (Hinton et al., arXiv 1503.02531, section 2).

    Mean over rows that the teacher answers. Where a row has a set of labels, of the sigmoids, mean over labels, too.
    """
    made, targets = _answered(output, batch)
    if scale.balance.sets:
        soft = (targets / scale.temperature).sigmoid()
        total = F.binary_cross_entropy_with_logits(made / scale.temperature, soft, reduction="sum")
        return total / max(1, targets.numel()) * scale.temperature**2
    soft = (targets / scale.temperature).softmax(dim=-1)
    total = F.cross_entropy(made / scale.temperature, soft, reduction="sum")
    return total / max(1, len(targets)) * scale.temperature**2


def sentence_vector(output: Output, batch: Batch, scale: Scale) -> Tensor:
    """One minus the cosine of a text's vector and the teacher's, mean over texts (DSRA, arXiv 2004.03097).

    A missing second text has a target of zeros and does not count.
    """
    assert output.vectors is not None and batch.vectors is not None
    known = batch.vectors.any(dim=-1)
    distance = 1 - F.cosine_similarity(output.vectors[known], batch.vectors[known], dim=-1)
    return distance.sum() / known.sum().clamp(min=1)


def label_loss(logits: Tensor, labels: Tensor, balance: Balance = Balance()) -> Tensor:
    """Mean loss of the rows that have a label; 0 if none has.

    Args:
        logits: `(batch, num_labels)`; one output for regression.
        labels: `(batch,)`; int64 class numbers, `UNLABELLED` for none, give cross-entropy; sets of labels the mean over
            labels of binary cross-entropy; float32 scores, not-a-number for none, the mean squared error.
        balance: Of classes; the mean is weighted by it.
    """
    if labels.is_floating_point():
        known = ~labels.isnan()
        return (logits[:, 0] - labels)[known].square().sum() / known.sum().clamp(min=1)
    weights, offsets = (None if one is None else one.to(logits) for one in (balance.weights, balance.offsets))
    adjusted = logits if offsets is None else logits + offsets
    if balance.sets:
        known = labels != UNLABELLED
        wanted = indicators(labels[known], logits.shape[1]).to(logits.dtype)
        total = F.binary_cross_entropy_with_logits(adjusted[known], wanted, pos_weight=weights, reduction="sum")
        return total / max(1, wanted.numel())
    total = F.cross_entropy(adjusted, labels, weights, ignore_index=UNLABELLED, reduction="sum")
    known = labels[labels != UNLABELLED]
    return total / (max(1, len(known)) if weights is None else weights[known].sum().clamp(min=1e-9))


def label_count(labels: Tensor, balance: Balance = Balance()) -> Tensor:
    """How many rows :func:`label_loss` is a mean over, `()`; of classes with weights, what these weigh together."""
    if labels.is_floating_point():
        return (~labels.isnan()).sum()
    known = labels[labels != UNLABELLED]
    if balance.weights is None or balance.sets:
        return torch.tensor(len(known), device=labels.device)
    return balance.weights.to(labels.device)[known].sum()


def _label(output: Output, batch: Batch, scale: Scale) -> Tensor:
    assert output.logits is not None and batch.labels is not None
    return label_loss(output.logits, batch.labels, scale.balance)


def _hidden_rows(batch: Batch, scale: Scale) -> Tensor:
    return torch.tensor(len(batch.hidden[0]), device=batch.mask.device)  # of pairs read separately, of both texts


def _pieces(batch: Batch, scale: Scale) -> Tensor:
    return (batch.mask if batch.hidden_mask is None else batch.hidden_mask).sum()


def _answers(batch: Batch, scale: Scale) -> Tensor:
    assert batch.logits is not None
    return (~batch.logits[:, 0].isnan()).sum()


def _texts(batch: Batch, scale: Scale) -> Tensor:
    assert batch.vectors is not None
    return batch.vectors.any(dim=-1).sum()


def _labels(batch: Batch, scale: Scale) -> Tensor:
    assert batch.labels is not None
    return label_count(batch.labels, scale.balance)


LOSSES: Mapping[str, Loss] = {
    "logit_mse": Loss(compute=logit_mse, count=_answers, needs="logits"),
    "soft_cross_entropy": Loss(compute=soft_cross_entropy, count=_answers, needs="logits", of_classes=True),
    "label": Loss(compute=_label, count=_labels, needs="labels"),
    "hidden_mse": Loss(compute=hidden_mse, count=_pieces, needs="hidden"),
    "hidden_relation": Loss(compute=hidden_relation, count=_pieces, needs="hidden"),
    "attention_relation": Loss(compute=attention_relation, count=_pieces, needs="entries"),
    "value_relation": Loss(compute=value_relation, count=_pieces, needs="entries"),
    "probe": Loss(compute=probe, count=_hidden_rows, needs="hidden"),
    "sentence_vector": Loss(compute=sentence_vector, count=_texts, needs="vectors"),
}


def over_ranks(batch: Batch, counts: Sequence[Tensor]) -> list[Tensor]:
    """What means over a rank's part of a batch weigh in the mean over all ranks.

    Args:
        batch: This rank's part.
        counts: What every mean is over, each `()`.

    Returns:
        Factors, each `()`; see :func:`~nni_bertnas.ranks.shares`.
    """
    if ranks.size() == 1 or not counts:
        return [torch.ones(()) for _ in counts]
    own = torch.stack([count.float() for count in counts])
    return list(ranks.shares(own * (not batch.spare)))


def weighted_losses(
    weights: Mapping[str, float], output: Output, batch: Batch, scale: Scale
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum of losses, those left out whose targets the batch lacks.

    Args:
        weights: Keys of LOSSES, with the weight of each.
        output: Of the student.
        batch: With the targets; its hidden states are those at the exits.
        scale: See :class:`Scale`.

    Returns:
        The sum, and every loss before its weight. Where other ranks have parts of the batch, what the mean over ranks
        makes the losses of the whole batch.
    """
    rows = {name: LOSSES[name] for name in weights if LOSSES[name].applies(batch)}
    parts = {name: loss.compute(output, batch, scale) for name, loss in rows.items()}
    if ranks.size() > 1:
        factors = over_ranks(batch, [loss.count(batch, scale) for loss in rows.values()])
        parts = {name: factor * part for (name, part), factor in zip(parts.items(), factors, strict=True)}
    total = sum((weights[name] * loss for name, loss in parts.items()), start=torch.zeros((), device=batch.mask.device))
    return total, parts
