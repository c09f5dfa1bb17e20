"""How cells can be searched: NNI's strategies by name. One row of STRATEGIES each, with the settings that it alone has.

A strategy itself stands in the module of its family and is loaded when it runs, as NNI reads a trial's environment when
it is loaded.
"""

import dataclasses
import importlib
import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from nni_bertnas.config import STRICT, CellSettings, Natural, Positive, Rate, Weight
from nni_bertnas.errors import ConfigError, lookup
from search_space.cells import AdaBERT
from search_space.listing import Space

_GRID_LIMIT = 2000  # architectures


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Options:
    """Settings of one strategy: `cell.options`."""

    def misfits(self, cell: CellSettings) -> list[str]:
        """What of it does not go with the rest of the section `cell`."""
        return []

    def refusal(self, spaces: Sequence[Space]) -> str | None:
        """Why the strategy cannot search these spaces, one per depth, and what to do; None if it can."""
        return None


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TrialOptions(Options):
    """Of strategies that train every architecture they try on its own."""

    samples: Positive = 12  # architectures tried per (block, depth)
    patience: Positive | None = None  # the search ends when so many samples in a row have not lowered the best by 1 %


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RandomOptions(TrialOptions):
    """Of `random`."""

    halvings: Natural = 0  # how often the worse half is dropped and the rest trained on, on twice as many rows


@dataclass(frozen=True, kw_only=True, config=STRICT)
class EvolutionOptions(TrialOptions):
    """Of `evolution`."""

    population: Annotated[int, Field(ge=2)] = 20


@dataclass(frozen=True, kw_only=True, config=STRICT)
class GridOptions(Options):
    """Of `grid`."""

    patience: Positive | None = None  # as of the other strategies that try architectures

    def refusal(self, spaces: Sequence[Space]) -> str | None:
        """Every architecture is trained."""
        large = {space.depth: space.count() for space in spaces if space.count() > _GRID_LIMIT}
        if not large:
            return None
        sizes = ", ".join(f"{count:,} at depth {depth}" for depth, count in large.items())
        return (
            f"grid trains every architecture, and {spaces[0].name} has {sizes} (at most {_GRID_LIMIT:,}); "
            "name fewer cell.operations, lower cell.depths, or choose random or evolution"
        )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class OneShotOptions(Options):
    """Of strategies that train one supernet and rank its paths by inherited weights."""

    candidate_epochs: Natural = 1  # training of each kept candidate, from the supernet's weights
    rank_limit: Positive = 300  # paths scored: all of a smaller space, otherwise by evolution
    rank_rows: Annotated[int, Field(ge=16)] | None = 200  # of dev, for a path's score; null takes all
    population: Annotated[int, Field(ge=2)] = 20  # of that evolution


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LearntOptions(OneShotOptions):
    """Of one-shot strategies that learn where to go on a part of train."""

    architecture_share: Annotated[float, Field(gt=0, lt=1)] = 0.2  # of train, for the architecture
    warmup_epochs: Natural = 0  # before the architecture moves

    def misfits(self, cell: CellSettings) -> list[str]:
        """The architecture must move at all."""
        if self.warmup_epochs < cell.epochs:
            return []
        return [f"cell.options.warmup_epochs must be under cell.epochs ({cell.epochs}), got {self.warmup_epochs}"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class EnasOptions(LearntOptions):
    """Of `enas`."""

    def refusal(self, spaces: Sequence[Space]) -> str | None:
        """NNI's controller chooses one input at a time, and needs packages of its own."""
        wires = [options for options in spaces[0].choices.values() if isinstance(options[0], list)]
        if any(len(options[0]) > 1 for options in wires):
            return (
                f"enas cannot search {spaces[0].name}, as NNI's controller chooses one input at a time and a node of "
                f"it keeps {AdaBERT.EDGES}; choose random_one_shot"
            )
        if missing := [name for name in ("tianshou", "gym") if importlib.util.find_spec(name) is None]:
            return (
                f"enas needs {' and '.join(missing)}, not installed: pip install 'nni-bertnas[enas]', or choose "
                "random_one_shot"
            )
        return None


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DifferentiableOptions(LearntOptions):
    """Of strategies that move the architecture by its gradient."""

    architecture_learning_rate: Rate = 3e-2
    operation_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0  # of parameter-free operations, falling to 0
    stable_epochs: Positive | None = None  # the search ends when the ranking has stood still so long
    # of the paths: by architecture weights; by what removing an operation does; as other one-shot strategies
    ranking: Literal["probability", "perturbation", "weights"] = "probability"
    MIXES = False  # whether every operation runs in every step, so that one can be taken out
    cost_weight: Weight = 0.0  # of expected cost / greatest cost, added to the loss; needs cell.cost

    def misfits(self, cell: CellSettings) -> list[str]:
        """A cost must be named to be weighed."""
        found = super().misfits(cell)
        if self.cost_weight and cell.cost is None:
            found.append("cell.cost must say what cell.options.cost_weight is about: num_params, num_flops, latency_ms")
        if self.ranking == "perturbation" and not self.MIXES:
            found.append("cell.options.ranking: perturbation is for darts alone, the others sample their paths")
        return found


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DartsOptions(DifferentiableOptions):
    """Of `darts`."""

    ranking: Literal["probability", "perturbation", "weights"] = "perturbation"
    mixture_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0  # of a mixture's operations, in every step (DropNAS)
    match_variance: bool = False  # a mixture's operations all have outputs of one size
    beta_decay: Weight = 0.0  # of architecture weights, at the search's end; rises from 0 (β-DARTS)
    gates: Literal["softmax", "sigmoid"] = "softmax"  # sigmoid: operations do not compete (FairDARTS)
    MIXES = True


@dataclass(frozen=True, kw_only=True, config=STRICT)
class GumbelOptions(DifferentiableOptions):
    """Of `gumbel_darts`."""

    temperature: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=2, max_length=2)] = dataclasses.field(
        default_factory=lambda: [1.0, 0.2]
    )  # first and last

    @model_validator(mode="after")
    def _falls(self) -> "GumbelOptions":
        if self.temperature[0] < self.temperature[1]:
            raise ValueError(f"temperature must fall, got {self.temperature}")
        return self


@dataclasses.dataclass(frozen=True, kw_only=True)
class Strategy:
    """One strategy.

    Attributes:
        family: Module of this folder that has it.
        function: Its name there.
        options: What it alone can be told.
        source: Of the method.
    """

    family: Literal["differentiable", "one_shot", "trials"]
    function: str
    options: type[Options]
    source: str

    def read_options(self, raw: Mapping[str, Any]) -> Options:
        """Its settings out of plain data.

        Raises:
            ValidationError: They are wrong; pydantic's.
        """
        # JSON, because strict dataclasses take mappings from it alone.
        return TypeAdapter(self.options).validate_json(json.dumps(dict(raw), default=str))

    def load(self) -> Callable[[Any], Any]:
        """The strategy itself: takes a `Search`, gives what it `Found`, both of :mod:`nni_bertnas.search.search`."""
        found: Callable[[Any], Any] = getattr(
            importlib.import_module(f"nni_bertnas.search.{self.family}"), self.function
        )
        return found


STRATEGIES: Mapping[str, Strategy] = {
    "darts": Strategy(
        family="differentiable", function="darts", options=DartsOptions,
        source="DARTS, first order (arXiv 1806.09055), operations taken out one by one (arXiv 2108.04392)",
    ),
    "gumbel_darts": Strategy(
        family="differentiable", function="gumbel_darts", options=GumbelOptions,
        source="SNAS (arXiv 1812.09926), temperature annealed",
    ),
    "proxyless": Strategy(
        family="differentiable", function="proxyless", options=DifferentiableOptions,
        source="ProxylessNAS (arXiv 1812.00332)",
    ),
    "random_one_shot": Strategy(
        family="one_shot", function="random_one_shot", options=OneShotOptions,
        source="SPOS (arXiv 1904.00420), DNA (arXiv 1911.13053)",
    ),
    "enas": Strategy(family="one_shot", function="enas", options=EnasOptions, source="ENAS (arXiv 1802.03268)"),
    "random": Strategy(
        family="trials", function="random_search", options=RandomOptions, source="arXiv 1902.07638"
    ),
    "evolution": Strategy(
        family="trials", function="evolution", options=EvolutionOptions,
        source="regularised evolution (arXiv 1802.01548)",
    ),
    "tpe": Strategy(family="trials", function="tpe", options=TrialOptions, source="Bergstra et al., 2011"),
    "grid": Strategy(family="trials", function="grid", options=GridOptions, source="every architecture"),
}  # fmt: skip


def find_strategy(cell: CellSettings) -> tuple[Strategy, Options]:
    """The strategy of a study's section `cell`, and its options.

    Raises:
        ConfigError: There is none of that name, or its options are wrong.
    """
    strategy = lookup(STRATEGIES, cell.strategy, "cell.strategy")
    try:
        return strategy, strategy.read_options(cell.options)
    except ValidationError as error:
        raise ConfigError(f"cell.options: {error.errors()[0]['msg']}") from error


def list_spaces(cell: CellSettings, hidden_size: int) -> list[Space]:
    """The spaces that a study searches, one per depth.

    Raises:
        ConfigError: There is no such space, or it has not these operations at this width.
    """
    try:
        spaces = [Space.of(cell.space, depth, hidden_size, cell.operations) for depth in cell.depths]
        for space in spaces:
            space.count()  # a space of the user's own may refuse
    except ValueError as error:
        raise ConfigError(f"cell.space, cell.operations: {error}") from error
    return spaces


def check_search(cell: CellSettings, hidden_size: int) -> None:
    """Whether the strategy can search its spaces.

    Raises:
        ConfigError: It cannot, with the reason and the remedy.
    """
    spaces = list_spaces(cell, hidden_size)
    if reason := find_strategy(cell)[1].refusal(spaces):
        raise ConfigError(f"cell.strategy: {reason}")
