"""What a model costs: parameters, floating-point operations, measured latency."""

import statistics
import time
import weakref
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from nni_bertnas.data.batches import Batch, model_inputs
from search_space.operations import make_operation

Call = Callable[[int], Any]  # sequence length -> one forward pass


@dataclass(frozen=True)
class Passes:
    """Forward passes of a module by sequence length.

    Attributes:
        module: In eval mode.
        inputs: Of every length, by name.
    """

    module: nn.Module
    inputs: Mapping[int, Mapping[str, Tensor]]

    def __call__(self, length: int) -> Any:
        """One of them."""
        return self.module(**self.inputs[length])


def count_params(module: nn.Module) -> int:
    """Parameters, shared ones once."""
    return sum(parameter.numel() for parameter in module.parameters())


def cell_call(cell: nn.Module, size: int, lengths: Sequence[int], *, sides: int = 1, batch: int = 1) -> Passes:
    """Forward passes by length of what takes `(sides * batch, seq, size)` and a mask; inputs made beforehand.

    Args:
        cell: In eval mode.
        size: Width.
        lengths: Of the rows.
        sides: 2 where the two texts of a row are sequences of their own, each half as long.
        batch: Rows of a pass.
    """
    shapes = {n: (sides * batch, -(-n // sides)) for n in set(lengths)}
    inputs = {
        n: {"x": torch.randn(*shape, size), "mask": torch.ones(shape, dtype=torch.bool)} for n, shape in shapes.items()
    }
    return Passes(cell, inputs)


def operation_costs(names: Sequence[str], hidden_size: int, kind: str, length: int) -> dict[str, float]:
    """What each operation costs on its own at batch 1.

    Args:
        names: Of the operations.
        hidden_size: Width.
        kind: `num_params`, `num_flops` or `latency_ms` (one thread).
        length: Of the sequence.
    """
    operations = {name: make_operation(name, hidden_size).eval() for name in names}
    if kind == "num_params":
        return {name: float(count_params(operation)) for name, operation in operations.items()}
    calls = {name: cell_call(operation, hidden_size, [length]) for name, operation in operations.items()}
    if kind == "num_flops":
        return {name: float(count_flops(call, length)) for name, call in calls.items()}
    return measure_latency_ms(calls, [length] * 30)


def model_call(model: nn.Module, lengths: Sequence[int], *, pairs: bool = False, batch: int = 1) -> Passes:
    """Forward passes of a Hugging Face classifier by length.

    Args:
        model: The classifier.
        lengths: Real sequence lengths.
        pairs: Whether the second half of the sequence is a second text.
        batch: Rows of a pass.
    """
    inputs = {}
    for n in set(lengths):
        types = torch.zeros(batch, n, dtype=torch.long)
        types[:, n // 2 :] = int(pairs)
        mask = torch.ones(batch, n, dtype=torch.bool)
        rows = Batch(input_ids=torch.full((batch, n), 5), mask=mask, token_type_ids=types)
        inputs[n] = model_inputs(model, rows)
    return Passes(model, inputs)


@torch.no_grad()
def count_flops(call: Call, length: int) -> int:
    """Floating-point operations of one pass at batch 1; a multiply-add counts as 2.

    Counts matrix products, convolutions and attention (torch's own counter); sums, norms and pools are left out.
    """
    # The fused CPU attention kernel is unknown to the counter.
    with FlopCounterMode(display=False) as counter, nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH):
        call(length)
    return int(counter.get_total_flops())


@torch.no_grad()
def count_activation_bytes(call: Call, length: int) -> int:
    """The most bytes that the tensors made in one pass take at one time; parameters and inputs are not among them.

    Counted as torch makes and drops them, the work space inside of its kernels left out.
    """
    with _Tensors() as tensors:
        call(length)
    return tensors.most


class _Tensors(TorchDispatchMode):
    """Follows the memory of every tensor that an operation gives, views of one another once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._alive: Counter[int] = Counter()  # tensors by where their memory begins
        self._given: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        given = {
            one.untyped_storage().data_ptr() for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)
        }
        self._given |= given - self._alive.keys()
        for one in tree_leaves(found):
            if isinstance(one, torch.Tensor) and (place := one.untyped_storage().data_ptr()) not in self._given:
                size = one.untyped_storage().nbytes()
                self.now += size if not self._alive[place] else 0
                self._alive[place] += 1
                weakref.finalize(one, self._drop, place, size)
        self.most = max(self.most, self.now)
        return found

    def _drop(self, place: int, size: int) -> None:
        self._alive[place] -= 1
        if not self._alive[place]:
            del self._alive[place]
            self.now -= size


@torch.inference_mode()
def measure_latency_ms(
    calls: Mapping[str, Call],
    lengths: Sequence[int],
    *,
    threads: int = 1,
    run: int = 10,
    before: Mapping[str, Call] | None = None,
) -> dict[str, float]:
    """Median milliseconds of one pass at batch 1.

    The calls take turns, so that a machine whose speed drifts treats them alike, of several passes in a row, of which
    the first is not counted: a model in use finds its weights in the processor's cache, and not another's.

    Args:
        calls: By name; their models in eval mode.
        lengths: Real sequence lengths, each measured once per call.
        threads: Of every pass.
        run: Passes in a row.
        before: By the names of some calls, what runs before each of their passes and is not counted.
    """
    other, kept = before or {}, torch.get_num_threads()
    torch.set_num_threads(threads)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for first in range(0, len(lengths), run):
        row = lengths[first : first + run]
        for name, call in calls.items():
            call(row[0])
            for length in row:
                if name in other:
                    other[name](length)
                start = time.perf_counter()
                call(length)
                times[name].append((time.perf_counter() - start) * 1000)
    torch.set_num_threads(kept)
    return {name: statistics.median(values) for name, values in times.items()}
