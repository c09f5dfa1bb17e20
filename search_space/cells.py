"""The kinds of cell, each written once: `choose` decides whether it is a search space or one architecture.

A body turns the hidden state at a block's entry, in the cell's own width, into the one at its exit:
`(x, mask, second) -> x` with x `(batch, seq, hidden)`, mask `(batch, seq)`, true where a position is kept, and second
`(batch, seq)`, true in the second sentence of a pair. Needs torch alone, so that a saved student loads anywhere.

An architecture is `label -> choice`: the name of an operation, or the numbers of the chosen inputs.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from .operations import AT_WIDTHS, blank, import_by_name, make_operation

Choice = str | list[int]
Architecture = Mapping[str, Choice]
Distribution = Mapping[str, Mapping[str, float]]  # label -> option -> probability


class Chooser(Protocol):
    """What a body asks for every open decision."""

    def operation(self, label: str, names: Sequence[str], make: Callable[[str], nn.Module]) -> nn.Module:
        """A module `(x, mask) -> x`, one of those that `make` gives for the names."""
        ...

    def inputs(self, label: str, count: int, chosen: int) -> nn.Module:
        """A module that takes `count` tensors as a list and gives the sum of `chosen` of them."""
        ...


class PickInputs(nn.Module):
    """The sum of the tensors with these numbers."""

    def __init__(self, numbers: Sequence[int]) -> None:
        super().__init__()
        self.numbers = list(numbers)

    def forward(self, tensors: list[Tensor]) -> Tensor:
        """A list of equal shapes -> one of them."""
        return torch.stack([tensors[number] for number in self.numbers]).sum(0) if len(self.numbers) > 1 else (
            tensors[self.numbers[0]]
        )  # fmt: skip


class Fixed:
    """Chooses what an architecture says."""

    def __init__(self, architecture: Architecture) -> None:
        self.architecture = architecture

    def _read(self, label: str, kind: type) -> Any:
        choice = self.architecture.get(label)
        if not isinstance(choice, kind):
            raise ValueError(f"the architecture says {choice!r} for {label}; a {kind.__name__} is needed")
        return choice

    def operation(self, label: str, names: Sequence[str], make: Callable[[str], nn.Module]) -> nn.Module:
        """See :class:`Chooser`."""
        return make(self._read(label, str))

    def inputs(self, label: str, count: int, chosen: int) -> nn.Module:
        """See :class:`Chooser`."""
        return PickInputs(self._read(label, list))


class Layer(nn.Module):
    """`x + operation(norm(x))`, the residual pre-norm layer (Xiong et al., arXiv 2002.04745)."""

    def __init__(self, operation: nn.Module, hidden_size: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size)
        self.operation = operation

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """`(batch, seq, hidden)`, `(batch, seq)` -> `(batch, seq, hidden)`."""
        # The mask goes by position: NNI's one-shot choices take no keyword arguments.
        return x + self.operation(self.norm(x), mask)


class Body(nn.Module):
    """Base of all kinds of cell.

    Args:
        choose: Takes every decision.
        depth: Layers; of AdaBERT, graphs one after another.
        operations: Names to choose from.
        hidden_size: Width.
    """

    OPERATIONS: ClassVar[tuple[str, ...]] = ()
    """Names that are offered where a study names none."""

    def __init__(self, choose: Chooser, depth: int, operations: Sequence[str], hidden_size: int) -> None:
        super().__init__()

    def forward(self, x: Tensor, mask: Tensor, second: Tensor | None = None) -> Tensor:
        """`(batch, seq, hidden)`, `(batch, seq)`, `(batch, seq)` -> `(batch, seq, hidden)`."""
        raise NotImplementedError

    @classmethod
    def canonical(cls, architecture: Architecture) -> dict[str, Choice]:
        """The architecture without decisions that change nothing."""
        return dict(architecture)

    @classmethod
    def derive(cls, probabilities: Distribution) -> Distribution:
        """What a differentiable supernet's probabilities say about every decision, inputs as "0+2"."""
        return probabilities


class Sequential(Body):
    """The operations of KIM-CNN (arXiv 1408.5882) and AdaBERT (arXiv 2001.04246) one after another."""

    OPERATIONS: ClassVar[tuple[str, ...]] = (
        "kim_convolution", "convolution_3", "convolution_5", "convolution_7",
        "dilated_convolution_3", "dilated_convolution_5", "dilated_convolution_7",
        "max_pool_3", "average_pool_3", "identity", "zero",
    )  # fmt: skip

    def __init__(self, choose: Chooser, depth: int, operations: Sequence[str], hidden_size: int) -> None:
        super().__init__(choose, depth, operations, hidden_size)
        self.layers = nn.ModuleList(
            Layer(choose.operation(f"layer_{number}", operations, lambda name: make_operation(name, hidden_size)),
                  hidden_size)
            for number in range(depth)
        )  # fmt: skip

    def forward(self, x: Tensor, mask: Tensor, second: Tensor | None = None) -> Tensor:
        """See :class:`Body`."""
        for layer in self.layers:
            x = layer(x, mask)
        return x


class Layers(Sequential):
    """One plain layer of `torch.nn` per choice, one after another: n-gram convolutions, pools, attention."""

    OPERATIONS = (
        "convolution_1", "convolution_3", "convolution_5", "convolution_7",
        "dilated_convolution_3", "dilated_convolution_5", "dilated_convolution_7",
        "max_pool_3", "average_pool_3", "attention_4", "attention_8", "attention_12",
    )  # fmt: skip


class NasBERT(Sequential):
    """Attention, feed-forward and separable convolutions at several widths, and identity (arXiv 2105.14444)."""

    OPERATIONS = (*(f"{name}{width}" for width in ("", "_half", "_quarter") for name in AT_WIDTHS), "identity")


class TextNAS(Body):
    """TextNAS's macro space (arXiv 1912.10729): input, operation and skips of every layer are chosen.

    Layer i picks its input among the outputs of the last five layers (the cell's input is the first), applies an
    operation to it, and adds any of the outputs before it. A learned combination of all layers leaves the cell.
    TextNAS's batch norm is our pre-norm residual layer.
    """

    OPERATIONS = (
        "convolution_1", "convolution_3", "convolution_5", "convolution_7",
        "max_pool_3", "average_pool_3", "bidirectional_gru", "attention_8",
    )  # fmt: skip
    LAST = 5

    def __init__(self, choose: Chooser, depth: int, operations: Sequence[str], hidden_size: int) -> None:
        super().__init__(choose, depth, operations, hidden_size)
        self.picks, self.layers, self.skips = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for number in range(depth):
            count = min(self.LAST, number + 1)
            self.picks.append(PickInputs([0]) if count == 1 else choose.inputs(f"layer_{number}_input", count, 1))
            operation = choose.operation(f"layer_{number}", operations, lambda name: make_operation(name, hidden_size))
            self.layers.append(Layer(operation, hidden_size))
            self.skips.append(
                nn.ModuleList(
                    choose.operation(f"layer_{number}_skip_{earlier}", ("zero", "identity"),
                                     lambda name: make_operation(name, hidden_size))
                    for earlier in range(number)
                )
            )  # fmt: skip
        self.combination = nn.Parameter(torch.zeros(depth))

    def forward(self, x: Tensor, mask: Tensor, second: Tensor | None = None) -> Tensor:
        """See :class:`Body`."""
        outputs = [x]
        for pick, layer, skips in zip(self.picks, self.layers, self.skips, strict=True):
            assert isinstance(skips, nn.ModuleList)
            y = layer(pick(outputs[-self.LAST :]), mask)
            for skip, earlier in zip(skips, outputs, strict=False):
                y = y + skip(earlier, mask)
            outputs.append(y)
        shares = self.combination.softmax(0)
        return torch.stack([share * y for share, y in zip(shares, outputs[1:], strict=True)]).sum(0)


class AdaBERT(Body):
    """AdaBERT's cell (arXiv 2001.04246): a graph of two inputs and three intermediate nodes, two edges into each.

    Every edge has an operation; what leaves is the input plus a learned weighted sum of the nodes. `depth` graphs
    follow one another. The inputs of the first are the views of the two sentences of a pair, or twice the cell's
    input; those of the second the cell's input and the first's output; of a later one the outputs of the two before it.
    """

    OPERATIONS = (
        "convolution_3", "convolution_5", "convolution_7",
        "dilated_convolution_3", "dilated_convolution_5", "dilated_convolution_7",
        "max_pool_3", "average_pool_3", "identity", "zero",
    )  # fmt: skip
    NODES = 3
    EDGES = 2  # kept into every node

    def __init__(self, choose: Chooser, depth: int, operations: Sequence[str], hidden_size: int) -> None:
        super().__init__(choose, depth, operations, hidden_size)
        self.graphs = nn.ModuleList(
            _Graph(choose, f"graph_{number}", operations, hidden_size, self.NODES, self.EDGES)
            for number in range(depth)
        )  # fmt: skip

    def forward(self, x: Tensor, mask: Tensor, second: Tensor | None = None) -> Tensor:
        """See :class:`Body`."""
        before, last = views(x, mask, second)
        residual = x
        for graph in self.graphs:
            output = residual + graph(before, last, mask)
            before, last, residual = residual, output, output
        return residual

    @classmethod
    def canonical(cls, architecture: Architecture) -> dict[str, Choice]:
        """Operations of edges that are not kept change nothing."""
        kept = {
            f"{label.removesuffix('_inputs')}_edge_{number}"
            for label, choice in architecture.items()
            if label.endswith("_inputs")
            for number in choice
        }
        return {
            label: choice
            for label, choice in architecture.items()
            if "_edge_" not in label or label in kept or f"{label.partition('_edge_')[0]}_inputs" not in architecture
        }

    @classmethod
    def derive(cls, probabilities: Distribution) -> Distribution:
        """The two strongest edges into every node; an edge is as strong as its most probable operation but zero.

        DARTS, arXiv 1806.09055, section 2.4.
        """
        derived: dict[str, Mapping[str, float]] = {}
        nodes: dict[str, dict[str, float]] = {}
        for label, choice in probabilities.items():
            node, _, number = label.partition("_edge_")
            derived[label] = {name: value for name, value in choice.items() if name != "zero"}
            nodes.setdefault(node, {})[number] = max(derived[label].values())
        for node, strengths in nodes.items():
            if len(strengths) > cls.EDGES:
                kept = sorted(sorted(strengths, key=strengths.__getitem__)[-cls.EDGES :], key=int)
                derived[f"{node}_inputs"] = {"+".join(kept): 1.0}
        return derived


def views(x: Tensor, mask: Tensor, second: Tensor | None) -> tuple[Tensor, Tensor]:
    """The two sentences of each pair, each with the other's positions blank; where there is no pair, x twice."""
    if second is None:
        return x, x
    pair = second.any(dim=1, keepdim=True)
    return blank(x, ~second | ~pair), blank(x, second | ~pair)


class _Graph(nn.Module):
    def __init__(
        self, choose: Chooser, label: str, operations: Sequence[str], hidden_size: int, nodes: int, edges: int
    ) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(hidden_size) for _ in range(2 + nodes - 1))
        self.edges, self.picks = nn.ModuleList(), nn.ModuleList()
        for node in range(nodes):
            count, name = 2 + node, f"{label}_node_{node}"
            pick = PickInputs(range(edges)) if count == edges else choose.inputs(f"{name}_inputs", count, edges)
            kept = pick.numbers if isinstance(pick, PickInputs) else range(count)
            self.picks.append(pick)
            self.edges.append(
                nn.ModuleDict(
                    {
                        str(number): choose.operation(
                            f"{name}_edge_{number}", operations, lambda op: make_operation(op, hidden_size)
                        )
                        for number in kept
                    }
                )
            )
        self.combination = nn.Parameter(torch.zeros(nodes))

    def forward(self, first: Tensor, second: Tensor, mask: Tensor) -> Tensor:
        states = [self.norms[0](first), self.norms[1](second)]
        nodes = []
        for edges, pick in zip(self.edges, self.picks, strict=True):
            assert isinstance(edges, nn.ModuleDict)
            # An edge that is not kept has no operation, and its number is not picked.
            nodes.append(pick([edges[str(n)](x, mask) if str(n) in edges else x for n, x in enumerate(states)]))
            if len(nodes) < len(self.edges):
                states.append(self.norms[len(states)](nodes[-1]))
        shares = self.combination.softmax(0)
        return torch.stack([share * node for share, node in zip(shares, nodes, strict=True)]).sum(0)


SPACES: dict[str, type[Body]] = {
    "textnas": TextNAS, "adabert": AdaBERT, "sequential": Sequential, "layers": Layers, "nasbert": NasBERT,
}  # fmt: skip


def find_space(name: str) -> type[Body]:
    """A kind of cell by its name, or by the dotted name of a user's own subclass of :class:`Body`.

    Raises:
        ValueError: There is none.
    """
    if "." in name or ":" in name:
        found = import_by_name(name)
        # By its name: the copy of this file beside a saved student has a class Body of its own.
        if not (isinstance(found, type) and any(base.__name__ == Body.__name__ for base in found.__mro__)):
            raise ValueError(f"space {name} must be a subclass of search_space.cells.Body")
        return found
    if name not in SPACES:
        raise ValueError(f"unknown space {name!r}; choose one of {', '.join(SPACES)}, or a dotted name")
    return SPACES[name]


def spell_choice(choice: Choice) -> str:
    """A choice as a text: the name of an operation, or numbers of inputs as "0+2"."""
    return choice if isinstance(choice, str) else "+".join(map(str, choice))


def spell(architecture: Architecture) -> str:
    """An architecture as one line, the same for equal ones: operations of plain layers, other decisions named."""
    parts = []
    for label, choice in architecture.items():
        text = spell_choice(choice)
        plain = label.startswith("layer_") and label.removeprefix("layer_").isdigit()
        parts.append(text if plain else f"{label}={text}")
    return ", ".join(parts) or "no layer"


class Cell(nn.Module):
    """The stand-in of one teacher block: hidden state at its entry -> hidden state at its exit.

    Where the widths differ, one learnable linear map leads in and one out (NAS-BERT, arXiv 2105.14444);
    equal widths need none.
    """

    def __init__(self, body: Body, teacher_size: int, hidden_size: int) -> None:
        super().__init__()
        same = teacher_size == hidden_size
        self.into = nn.Identity() if same else nn.Linear(teacher_size, hidden_size)
        self.body = body
        self.out = nn.Identity() if same else nn.Linear(hidden_size, teacher_size)

    def forward(self, x: Tensor, mask: Tensor, second: Tensor | None = None) -> Tensor:
        """`(batch, seq, teacher_hidden)`, `(batch, seq)`, `(batch, seq)` -> `(batch, seq, teacher_hidden)`."""
        return self.out(self.body(self.into(x), mask, second))


def build_body(space: str, architecture: Architecture, depth: int, hidden_size: int) -> Body:
    """One architecture of a space.

    Raises:
        ValueError: A name is unknown or does not suit the width, or a decision is missing.
    """
    return find_space(space)(Fixed(architecture), depth, (), hidden_size)


def build_cell(space: str, architecture: Architecture, depth: int, teacher_size: int, hidden_size: int) -> Cell:
    """A cell of one architecture with the maps around it; see :func:`build_body`."""
    return Cell(build_body(space, architecture, depth, hidden_size), teacher_size, hidden_size)
