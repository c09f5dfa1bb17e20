"""A candidate: one cell's architecture, its weights, its block score and its cost; in memory and on disk."""

import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from statistics import median_high
from typing import Any, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from nni_bertnas.artifacts import check_whole, own_file
from nni_bertnas.errors import PhaseError
from nni_bertnas.student.cost import cell_call, count_flops, count_params, measure_latency_ms
from search_space.cells import Architecture, Cell, build_cell, spell

_LATENCY_ROWS = 40
_SIZES = re.compile(r"(_\d+)+$")
_Kept = TypeVar("_Kept")


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One cell, and what is known of it so far.

    Attributes:
        space: Kind of cell: a key of `cells.SPACES`, or a dotted name.
        depth: Searchable layers.
        architecture: Its decisions.
        score: Block score, lower is better.
        replaced: How far the teacher's outputs move with the cell in place of its block, see
            :func:`~nni_bertnas.training.replaced.replaced_errors`; None: not measured.
        inherited: The block score with the weights of a one-shot supernet, before any training of its own.
        num_params: Of the cell.
        num_flops: Of one pass at batch 1.
        latency_ms: Likewise.
        weights: Name of the file beside the result.
        cell: With its weights, where it is in memory.
    """

    space: str
    depth: int
    architecture: Architecture
    score: float = float("nan")
    replaced: float | None = None
    inherited: float | None = None
    num_params: int = 0
    num_flops: int = 0
    latency_ms: float = 0.0
    weights: str = ""
    cell: Cell | None = field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        return f"depth {self.depth}, {spell(self.architecture)}"

    @property
    def shape(self) -> dict[str, Any]:
        """What a saved student says of it."""
        return {"space": self.space, "depth": self.depth, "architecture": dict(self.architecture)}

    @property
    def trained(self) -> Cell:
        """Its cell, which must be in memory."""
        assert self.cell is not None
        return self.cell

    def to_dict(self) -> dict[str, Any]:
        """As plain data, without its cell."""
        known = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "cell"}
        return {**known, "architecture": dict(self.architecture)}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "Candidate":
        """Out of plain data, as a result holds it."""
        return cls(**raw)

    def fresh(self, teacher_size: int, hidden_size: int) -> "Candidate":
        """With a cell of random weights, in training mode."""
        cell = build_cell(self.space, self.architecture, self.depth, teacher_size, hidden_size)
        return replace(self, cell=cell)

    def load(self, folder: Path, teacher_size: int, hidden_size: int) -> "Candidate":
        """With its trained cell, in eval mode.

        Args:
            folder: Of the result.
            teacher_size: Width of the teacher's hidden states.
            hidden_size: Width inside the cell.

        Raises:
            PhaseError: Its weights are missing or do not fit.
        """
        found = self.fresh(teacher_size, hidden_size)
        path = own_file(folder, self.weights)
        check_whole(folder)
        try:
            found.trained.load_state_dict(load_file(path))
        except (OSError, RuntimeError, ValueError, SafetensorError) as error:
            raise PhaseError(
                f"{path} is missing or damaged ({error}); make it anew with: bertnas run STUDY --force cell"
            ) from error
        found.trained.eval()
        return found


def no_layer() -> Candidate:
    """The cell without any: maps alone."""
    return Candidate(space="sequential", depth=0, architecture={})


def kind_of(architecture: Architecture) -> tuple[str, ...]:
    """Of what an architecture is made, whatever the sizes: attention of four heads and of eight are of one kind."""
    names = (name for name in architecture.values() if isinstance(name, str))
    return tuple(sorted(name if ":" in name else _SIZES.sub("", name).rpartition("_")[2] for name in names))


def kinds_first(candidates: Sequence[_Kept], kind: Callable[[_Kept], Hashable]) -> list[_Kept]:
    """The first of every kind, in their order, then the others: scores of one block hardly tell kinds apart."""
    firsts = {kind(one): one for one in reversed(candidates)}
    leading = [one for one in candidates if firsts[kind(one)] is one]
    return [*leading, *(one for one in candidates if firsts[kind(one)] is not one)]


def time_together(candidates: Sequence[Candidate], teacher_size: int, lengths: Sequence[int]) -> list[Candidate]:
    """The candidates with latencies that can be compared: measured in turns.

    Args:
        candidates: With their cells.
        teacher_size: Width of the teacher's hidden states.
        lengths: Real sequence lengths, of which the first 40 serve.
    """
    lengths = lengths[:_LATENCY_ROWS]
    calls = {str(number): cell_call(one.trained.eval(), teacher_size, lengths) for number, one in enumerate(candidates)}
    latency_ms = measure_latency_ms(calls, lengths)
    return [replace(one, latency_ms=latency_ms[str(number)]) for number, one in enumerate(candidates)]


def save_candidates(
    folder: Path, candidates: Sequence[Candidate], teacher_size: int, lengths: Sequence[int]
) -> list[dict[str, Any]]:
    """Save trained cells, in their order, with what each costs.

    Args:
        folder: Takes one safetensors file per candidate.
        candidates: With their cells, best first.
        teacher_size: Width of the teacher's hidden states.
        lengths: Real sequence lengths, of which the first 40 serve: FLOPs at their median, latency over all.

    Returns:
        What goes into the result.
    """
    middle = median_high(lengths[:_LATENCY_ROWS])
    saved = []
    for rank, one in enumerate(time_together(candidates, teacher_size, lengths)):
        weights = f"candidate_{rank}.safetensors"
        state = one.trained.state_dict()
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / weights)
        costs = replace(
            one,
            num_params=count_params(one.trained),
            num_flops=count_flops(cell_call(one.trained, teacher_size, [middle]), middle),
            weights=weights,
        )
        saved.append(costs.to_dict())
    return saved
