"""What a cell is worth to the task: the teacher's outputs with the cell in place of its block.

Puzzle scores its blocks so (arXiv 2411.19146, section 3.2): a block's own error counts as much as the layers behind it
make of it. The sum over blocks weighs early and late blocks as the task does.
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nni_bertnas.data.batches import Batch, model_inputs
from nni_bertnas.store.writer import mean_vector, read_alone
from nni_bertnas.student.start import encoder_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SAME = 1e-3  # of the outputs' deviation, by which the layers behind an edge may differ from the whole


@dataclass(frozen=True)
class _Reading:
    """What a model is given, and where a cell's hidden state goes.

    Attributes:
        inputs: Of the model.
        mask: Positions that a cell reads and writes, `(batch, seq)`, those before `first` left out.
        second: Of the second text, likewise; None where there is none.
        first: Positions that no cell sees.
    """

    inputs: dict[str, Tensor]
    mask: Tensor
    second: Tensor | None
    first: int


@torch.inference_mode()
def replaced_errors(
    model: "PreTrainedModel",
    edges: Sequence[int],
    cells: Sequence[nn.Module],
    batches: Iterable[Batch],
    *,
    separate: bool,
) -> list[float] | None:
    """How far a model's outputs move where a cell stands in for its layers from one edge to the next.

    Args:
        model: In eval mode.
        edges: The layers behind which the cells' block begins, and ends.
        cells: Each `(hidden, mask, second) -> hidden`, in eval mode.
        batches: With tokens.
        separate: Whether the model is an encoder that reads the texts of pairs separately. Its outputs are the mean of
            the last hidden state over each text, as the answer is the student's head's to give; else a classifier's
            logits.

    Returns:
        Of every cell the mean squared error over the outputs' variance; None where the layers of the model cannot be
        told apart (ALBERT's are one).
    """
    layers = encoder_layers(model)
    if layers is None:
        return None
    entry, exit_ = edges
    first = list(layers)[:exit_]
    totals = [0.0] * len(cells)
    targets: list[Tensor] = []
    for batch in batches:
        one = batch.to(next(model.parameters()).device)
        reading = _separate(model, one) if separate else _joint(model, one)
        with _seeing(layers[0]) as seen:
            output = model(**reading.inputs, output_hidden_states=True)
        states, target = output.hidden_states, _answer(output, reading)
        form = _form(seen[0], states[1])
        if form is None:
            return None

        def answer(hidden: Tensor, reading: _Reading = reading, form: tuple[Any, int | None] = form) -> Tensor:
            with _starting_from(first, hidden, *form):
                return _answer(model(**reading.inputs), reading)

        if not targets and not (answer(states[exit_]) - target).abs().max() <= _SAME * (target.std() + 1e-6):
            return None
        targets.append(target.flatten(1))
        for number, cell in enumerate(cells):
            made = cell(states[entry][:, reading.first :], reading.mask, reading.second)
            hidden = states[exit_].clone()
            hidden[:, reading.first :][reading.mask] = made[reading.mask].to(hidden.dtype)
            totals[number] += float((answer(hidden).flatten(1) - target.flatten(1)).square().sum())
    outputs = torch.cat(targets)
    scale = float((outputs - outputs.mean(0)).square().sum()) + 1e-12
    return [total / scale for total in totals]


def _joint(model: "PreTrainedModel", batch: Batch) -> _Reading:
    assert batch.token_type_ids is not None
    pairs = bool((batch.token_type_ids == 1).any())
    second = (batch.token_type_ids == 1) & batch.mask if pairs else None
    return _Reading(model_inputs(model, batch), (batch.token_type_ids < 2) & batch.mask, second, 0)


def _separate(model: "PreTrainedModel", batch: Batch) -> _Reading:
    alone, side_mask = read_alone(batch)
    return _Reading(model_inputs(model, alone), side_mask, None, 1)


def _answer(output: Any, reading: _Reading) -> Tensor:
    if hasattr(output, "logits"):
        logits: Tensor = output.logits
        return logits
    return mean_vector(output.last_hidden_state, reading.inputs["attention_mask"].bool())


@contextlib.contextmanager
def _seeing(layer: nn.Module) -> Iterator[list[Any]]:
    """Takes down what a layer gives."""
    seen: list[Any] = []
    hook = layer.register_forward_hook(lambda module, given, output: seen.append(output))
    try:
        yield seen
    finally:
        hook.remove()


def _form(output: Any, hidden: Tensor) -> tuple[Any, int | None] | None:
    """How a layer gives its hidden state: alone, or as one of a tuple; None where neither."""
    if isinstance(output, Tensor):
        return (output, None) if torch.equal(output, hidden) else None
    for number, one in enumerate(output if isinstance(output, tuple) else ()):
        if isinstance(one, Tensor) and one.shape == hidden.shape and torch.equal(one, hidden):
            return output, number
    return None


@contextlib.contextmanager
def _starting_from(layers: Sequence[nn.Module], hidden: Tensor, output: Any, place: int | None) -> Iterator[None]:
    """Let the first layers all give one hidden state, and do nothing else.

    Args:
        layers: The first.
        hidden: `(batch, seq, hidden)`.
        output: What such a layer gives.
        place: Where in it the hidden state is; None: it is all.
    """
    given = hidden if place is None else (*output[:place], hidden, *output[place + 1 :])
    for layer in layers:
        layer.__dict__["forward"] = lambda *arguments, **named: given
    try:
        yield
    finally:
        for layer in layers:
            del layer.__dict__["forward"]
