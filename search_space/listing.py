"""A space of cells as a list of decisions: what can be chosen, how many architectures there are, which they are.

Nothing is built here but the cells that are asked for, and nothing of it is shipped with a saved student.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import nn

from .cells import Architecture, Body, Cell, Choice, Distribution, build_cell, find_space
from .operations import make_operation, suits_width


@dataclass(frozen=True, kw_only=True)
class Space:
    """All cells of one kind, depth and width.

    Attributes:
        name: Kind of cell: a key of `cells.SPACES`, or a dotted name.
        depth: Searchable layers.
        operations: Names to choose from, as architectures spell them.
        hidden_size: Width inside the cell.
    """

    name: str
    depth: int
    operations: tuple[str, ...]
    hidden_size: int

    @classmethod
    def of(cls, name: str, depth: int, hidden_size: int, operations: Sequence[str] | None = None) -> "Space":
        """A space of the named operations, or of all of its own that the width allows.

        Raises:
            ValueError: A name is unknown or does not suit the width, or fewer than two operations are left.
        """
        kind = find_space(name)
        if operations is None:
            found = tuple(one for one in kind.OPERATIONS if suits_width(one, hidden_size))
        else:
            found = tuple(one.replace(".", ":") for one in operations)
            for one in found:
                make_operation(one, hidden_size)
        if len(found) < 2:
            raise ValueError(f"space {name} needs two operations to choose from, got {', '.join(found) or 'none'}")
        return cls(name=name, depth=depth, operations=found, hidden_size=hidden_size)

    @property
    def kind(self) -> type[Body]:
        """The class of the cells' bodies."""
        return find_space(self.name)

    @cached_property
    def choices(self) -> dict[str, list[Choice]]:
        """Every decision with all it can come to."""
        listing = _Listing()
        self.kind(listing, self.depth, self.operations, self.hidden_size)
        return listing.choices

    @property
    def operation_names(self) -> list[str]:
        """Every operation that a decision can come to; a space may have decisions of its own, such as skips."""
        every = itertools.chain(*self.choices.values())
        return sorted({choice for choice in every if isinstance(choice, str)})

    @property
    def _first(self) -> dict[str, Choice]:
        return {label: options[0] for label, options in self.choices.items()}

    def count(self) -> int:
        """How many different architectures there are."""
        # Decisions that one choice of inputs leaves out are left out by all.
        return math.prod(len(self.choices[label]) for label in self.kind.canonical(self._first))

    def every(self) -> Iterator[dict[str, Choice]]:
        """All architectures, each once, in the order of the lists."""
        wires = {label: options for label, options in self.choices.items() if isinstance(options[0], list)}
        for picked in itertools.product(*wires.values()):
            kept = self.kind.canonical({**self._first, **dict(zip(wires, picked, strict=True))})
            open_labels = [label for label in kept if label not in wires]
            for values in itertools.product(*(self.choices[label] for label in open_labels)):
                yield {**kept, **dict(zip(open_labels, values, strict=True))}

    def canonical(self, sample: Mapping[str, Choice]) -> dict[str, Choice]:
        """A sample as an architecture: decisions in the space's order, without those that change nothing."""
        ordered: dict[str, Choice] = {}
        for label in self.choices:
            choice = sample.get(label)
            if choice is not None:  # an architecture has no decision for an edge that is not kept
                ordered[label] = choice if isinstance(choice, str) else sorted(choice)
        return self.kind.canonical(ordered)

    def derive(self, probabilities: Distribution) -> Distribution:
        """See :meth:`~search_space.cells.Body.derive`."""
        return self.kind.derive(probabilities)

    def build(self, architecture: Architecture, teacher_size: int) -> Cell:
        """A fresh cell of an architecture with the maps around it.

        Raises:
            ValueError: It is none of this space.
        """
        return build_cell(self.name, architecture, self.depth, teacher_size, self.hidden_size)


class _Listing:
    """Notes every decision and builds nothing."""

    def __init__(self) -> None:
        self.choices: dict[str, list[Choice]] = {}

    def operation(self, label: str, names: Sequence[str], make: Callable[[str], nn.Module]) -> nn.Module:
        self.choices[label] = list(names)
        return nn.Identity()

    def inputs(self, label: str, count: int, chosen: int) -> nn.Module:
        self.choices[label] = [list(numbers) for numbers in itertools.combinations(range(count), chosen)]
        return nn.Identity()
