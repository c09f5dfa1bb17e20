"""NNI's strategies by name. Each runs a real `NasExperiment` over a cell space and gives back trained cells."""

import heapq
import importlib.util
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nni_bertnas.config import CellConfig, Study
from nni_bertnas.errors import CandidateError, ConfigError
from search_space.cells import (
    AdaBERT,
    Architecture,
    Cell,
    Choice,
    count_architectures,
    find_space,
    list_choices,
    space_operations,
    spell,
)

if TYPE_CHECKING:
    from nni_bertnas.search.evaluator import DistillationEvaluator
    from search_space.spaces import CellSpace

_log = logging.getLogger(__name__)
_GRID_LIMIT = 2000  # architectures
_PLATEAU = 0.01  # a score that is not lower by this share is no progress
_LIKELY = 5000  # most probable architectures among which affordable ones are looked for


@dataclass(frozen=True, kw_only=True)
class Found:
    """One architecture that a search came up with.

    Attributes:
        space: Kind of cell.
        depth: Of the cells.
        architecture: Its decisions.
        cells: The trained cell of every block.
        scores: Their block scores (lower is better).
        inherited: Mean block score with the weights of the one-shot supernet, before any training of its own.
    """

    space: str
    depth: int
    architecture: Architecture
    cells: Sequence[Cell]
    scores: Sequence[float]
    inherited: float | None = None

    @property
    def score(self) -> float:
        """Mean over the blocks."""
        return float(np.mean(self.scores))


@dataclass(frozen=True, kw_only=True)
class Search:
    """What a strategy works on.

    Attributes:
        make_space: Builds the cells to search; a one-shot strategy makes its space a supernet for good.
        make_evaluator: Builds the evaluator of the block; takes what the strategy alone knows.
        config: Settings of the search.
        seed: Of the strategy.
        folder: Where NNI keeps its files.
        costs: Of every operation, where the study names a cost.
        paths: Filled by the ranking of a supernet's paths: spelling -> architecture and inherited score.
    """

    make_space: "Callable[[], CellSpace]"
    make_evaluator: "Callable[..., DistillationEvaluator]"
    config: CellConfig
    seed: int
    folder: Path
    costs: Mapping[str, float] | None = None
    paths: dict[str, tuple[Architecture, float]] = field(default_factory=dict)

    @cached_property
    def space(self) -> "CellSpace":
        """The space that the strategy searches."""
        return self.make_space()

    def run(
        self, space: "CellSpace", evaluator: Any, strategy: Any, model_format: str, max_trials: int | None = None
    ) -> None:
        """Run one `NasExperiment` in this process (NNI's sequential engine)."""
        from nni.nas.experiment import NasExperiment, NasExperimentConfig

        config = NasExperimentConfig("sequential", model_format)
        config.experiment_working_directory = str(self.folder.resolve())
        config.max_trial_number = max_trials
        experiment = NasExperiment(space, evaluator, strategy, config)
        try:
            experiment.run(port=0)
        finally:
            experiment.stop()

    def run_trials(
        self, metric: Callable[[Mapping[str, Choice]], float], strategy: Any, max_trials: int | None
    ) -> None:
        """Let a multi-trial strategy of NNI look for the sample of the highest metric, within `max_cost`."""
        from nni.nas.strategy.middleware import Chain, Filter

        from nni_bertnas.search.evaluator import SampleEvaluator

        if self.config.max_cost is not None:
            strategy = Chain(strategy, Filter(lambda model: self.affordable(model.sample), metric_for_invalid=-1e9))
        self.run(self.make_space(), SampleEvaluator(metric), strategy, "simplified", max_trials)

    @cached_property
    def ranking_batches(self) -> list[dict[str, Any]]:
        """The rows of dev on which paths of a supernet are scored, always the same ones."""
        from nni_bertnas.search.evaluator import score_batches

        evaluator = self.make_evaluator()
        rows = np.random.default_rng(self.seed).permutation(len(evaluator.dev))[: self.config.rank_rows]
        return list(score_batches(evaluator.dev, evaluator.edges, rows))

    def affordable(self, sample: Mapping[str, Choice]) -> bool:
        """Whether a sample's operations together cost no more than `max_cost`."""
        return self.config.max_cost is None or self.cost(self.space.canonical(sample)) <= self.config.max_cost

    def found(
        self, architecture: Architecture, cells: Sequence[Cell], scores: Sequence[float], inherited: float | None = None
    ) -> Found:
        """What was found, with where it belongs."""
        space = self.space
        return Found(
            space=space.space,
            depth=space.depth,
            architecture=architecture,
            cells=cells,
            scores=scores,
            inherited=inherited,
        )

    def cost(self, architecture: Architecture) -> float:
        """Of an architecture's operations together."""
        assert self.costs is not None
        return sum(self.costs[name] for name in architecture.values() if isinstance(name, str))


# --- one-shot ---------------------------------------------------------------------------------------------------


def search_darts(search: Search) -> list[Found]:
    """First-order DARTS (Liu et al., arXiv 1806.09055)."""
    from nni.nas.strategy import DARTS

    return _differentiable(search, DARTS)


def search_gumbel_darts(search: Search) -> list[Found]:
    """DARTS with Gumbel-softmax samples (SNAS, arXiv 1812.09926), the temperature falling linearly by epoch."""
    from nni.nas.strategy import GumbelDARTS

    first, last = search.config.temperature
    return _differentiable(search, GumbelDARTS, temperature=(float(first), float(last)))


def search_proxyless(search: Search) -> list[Found]:
    """ProxylessNAS (Cai et al., arXiv 1812.00332): one sampled path a step."""
    from nni.nas.strategy import Proxyless

    return _differentiable(search, Proxyless)


def _differentiable(search: Search, strategy_class: Any, **options: Any) -> list[Found]:
    from nni_bertnas.search.watch import ArchitectureWatch, EfficiencyPenalty, OperationDropout, probabilities

    config = search.config
    callbacks: list[Any] = [ArchitectureWatch(config.stable_epochs, config.warmup_epochs)]
    if config.operation_dropout:
        callbacks.append(OperationDropout(config.operation_dropout))
    penalty = EfficiencyPenalty(search.costs, config.cost_weight) if search.costs and config.cost_weight else None
    evaluator = search.make_evaluator(
        architecture_share=config.architecture_share, callbacks=callbacks, penalty=penalty
    )
    evaluator.start_maps(search.space.cells)
    strategy = strategy_class(
        arc_learning_rate=config.architecture_learning_rate,
        gradient_clip_val=config.gradient_clip,
        warmup_epochs=config.warmup_epochs,
        mutation_hooks=[_sum_all_edges],
        **options,
    )
    search.run(search.space, evaluator, strategy, "raw")
    if config.ranking == "weights":
        chosen = rank_paths(search, strategy.supernet, evaluator)
    else:
        count = config.candidates if config.max_cost is None else _LIKELY
        likely = most_probable(search.space, probabilities(strategy.supernet), count)
        ranked = [architecture for architecture in likely if search.affordable(architecture)][: config.candidates]
        if not ranked:
            raise ConfigError(
                f"cell.max_cost {config.max_cost:g} is under the cost of all {count:,} most probable architectures; "
                "raise it, set cell.cost_weight, or set cell.ranking to weights"
            )
        chosen = [
            (architecture, _inherited(search, evaluator, strategy.supernet, architecture)) for architecture in ranked
        ]
    return _go_on(search, evaluator, strategy.supernet, chosen)


def _sum_all_edges(module: Any, name: str, memo: Any, options: Any) -> Any:
    """NNI mutation hook: in a differentiable supernet a node sums all its edges (DARTS, section 2.1); which are kept
    is derived from the operations' probabilities."""
    from nni.nas.nn.pytorch import InputChoice

    if type(module) is InputChoice and module.n_chosen > 1:
        from search_space.spaces import EveryInput

        return EveryInput(module.n_candidates, module.n_chosen), True
    return None


def search_random_one_shot(search: Search) -> list[Found]:
    """One uniformly sampled path a step (SPOS, arXiv 1904.00420; DNA, arXiv 1911.13053), then the ranking of paths."""
    from nni.nas.strategy import RandomOneShot

    evaluator = search.make_evaluator()
    evaluator.start_maps(search.space.cells)
    strategy = RandomOneShot(filter=None if search.config.max_cost is None else search.affordable)
    try:
        search.run(search.space, evaluator, strategy, "raw")
    except RuntimeError as error:
        if "valid architecture" not in str(error):
            raise
        raise ConfigError(
            f"cell.max_cost {search.config.max_cost:g} leaves so few architectures that none of 100 drawn is cheap "
            "enough; raise it, or leave dear ones out of cell.operations"
        ) from error
    return _go_on(search, evaluator, strategy.supernet, rank_paths(search, strategy.supernet, evaluator))


def search_enas(search: Search) -> list[Found]:
    """ENAS (Pham et al., arXiv 1802.03268): a controller, trained with PPO, samples the paths; then their ranking."""
    from nni_bertnas.search.enas import MendedENAS

    config = search.config
    evaluator = search.make_evaluator(architecture_share=config.architecture_share)
    evaluator.start_maps(search.space.cells)
    strategy = MendedENAS(
        # At least one update of the controller an epoch; a few samples each, as their advantages are normalised.
        batches_per_update=max(5, min(20, len(evaluator.val_dataloaders))),
        reward_metric_name="reward",
        gradient_clip=config.gradient_clip,
        warmup_epochs=config.warmup_epochs,
    )
    search.run(search.space, evaluator, strategy, "raw")
    return _go_on(search, evaluator, strategy.supernet, rank_paths(search, strategy.supernet, evaluator))


def _inherited(search: Search, evaluator: "DistillationEvaluator", supernet: Any, architecture: Architecture) -> float:
    from search_space.spaces import extract_cells

    try:
        return float(np.mean(evaluator.score(extract_cells(supernet, architecture), search.ranking_batches)))
    except CandidateError:
        return math.inf


def rank_paths(search: Search, supernet: Any, evaluator: "DistillationEvaluator") -> list[tuple[Architecture, float]]:
    """Paths of a one-shot supernet with their inherited scores on dev, best first, one per candidate to be.

    Every path of a space of at most `rank_limit` architectures (DNA, arXiv 1911.13053, section 3.3), otherwise those
    that NNI's regularised evolution (arXiv 1802.01548) tries in `rank_limit` steps.
    """
    space, config, scored = search.space, search.config, search.paths

    def score(sample: Mapping[str, Choice]) -> float:
        architecture = space.canonical(sample)
        name = spell(architecture)
        if name not in scored:
            scored[name] = architecture, _inherited(search, evaluator, supernet, architecture)
        return scored[name][1]

    if space.count() <= config.rank_limit:
        for architecture in space.every():
            if search.affordable(architecture):
                score(architecture)
    else:
        from nni.nas.strategy import RegularizedEvolution

        population = max(2, min(config.population, config.rank_limit // 2))
        strategy = RegularizedEvolution(
            population_size=population, sample_size=max(1, population // 4), mutation_prob=0.25, seed=search.seed
        )
        search.run_trials(lambda sample: -min(score(sample), 1e9), strategy, config.rank_limit)
    return heapq.nsmallest(config.candidates, scored.values(), key=lambda pair: pair[1])


def _go_on(
    search: Search, evaluator: "DistillationEvaluator", supernet: Any, chosen: Sequence[tuple[Architecture, float]]
) -> list[Found]:
    """Train the chosen paths on from the supernet's weights, each on its own."""
    from search_space.spaces import extract_cells

    found = []
    for architecture, inherited in chosen:
        cells = extract_cells(supernet, architecture)
        try:
            scores = evaluator.fit_cells(cells, search.config.candidate_epochs)
        except CandidateError as error:
            _log.warning("%s: %s", spell(architecture), error)
        else:
            found.append(search.found(architecture, cells, scores, inherited))
    return found


def most_probable(
    space: "CellSpace", probabilities: Mapping[str, Mapping[str, float]], count: int
) -> list[Architecture]:
    """The `count` architectures of the highest probability, best first, as the space derives them."""
    kind = find_space(space.space)
    derived = kind.derive(probabilities)
    choices = space.choices()

    def read(label: str, name: str) -> Choice:
        return name if isinstance(choices[label][0], str) else [int(number) for number in name.split("+")]

    first = {label: read(label, max(derived[label], key=derived[label].__getitem__)) for label in choices}
    best: list[tuple[float, dict[str, Choice]]] = [(0.0, {})]
    for label in kind.canonical(first):
        longer = (
            (total + math.log(max(value, 1e-30)), {**architecture, label: read(label, name)})
            for total, architecture in best
            for name, value in derived[label].items()
        )
        best = heapq.nlargest(count, longer, key=lambda pair: pair[0])
    return [architecture for _, architecture in best]


# --- multi-trial ------------------------------------------------------------------------------------------------


def search_random(search: Search) -> list[Found]:
    """Random search (Li and Talwalkar, arXiv 1902.07638): sampled architectures, each trained on its own.

    With `halvings`, successive halving (Jamieson and Talwalkar, arXiv 1502.07943): the better half is trained on, on
    twice as many rows.
    """
    from nni.nas.strategy import Random

    return _trials(search, Random(seed=search.seed), search.config.samples)


def search_evolution(search: Search) -> list[Found]:
    """Regularised evolution (Real et al., arXiv 1802.01548), each architecture trained on its own."""
    from nni.nas.strategy import RegularizedEvolution

    population = min(search.config.population, max(2, search.config.samples // 2))
    strategy = RegularizedEvolution(
        population_size=population, sample_size=max(1, population // 2), mutation_prob=0.25, seed=search.seed
    )
    return _trials(search, strategy, search.config.samples)


def search_tpe(search: Search) -> list[Found]:
    """Tree-structured Parzen estimator (Bergstra et al., 2011): NNI's tuner, each architecture trained on its own.

    NNI's own TPE strategy cannot describe an `InputChoice` to its tuner; ours spells it as a choice of texts.
    """
    from nni import NoMoreTrialError
    from nni.algorithms.hpo.tpe_tuner import TpeTuner

    from nni_bertnas.search.evaluator import Proposals

    tuner = TpeTuner(optimize_mode="maximize", seed=search.seed)
    options = {label: {write(one): one for one in some} for label, some in search.space.choices().items()}
    tuner.update_search_space({label: {"_type": "choice", "_value": list(some)} for label, some in options.items()})

    def propose() -> Iterator[tuple[Mapping[str, Choice], Callable[[float], None]]]:
        number = 0
        while True:
            try:
                texts = tuner.generate_parameters(number)
            except NoMoreTrialError:  # a space smaller than the samples asked for
                return
            sample = {label: options[label][text] for label, text in texts.items()}
            if search.affordable(sample):
                yield sample, partial(tuner.receive_trial_result, number, texts)
            else:
                tuner.receive_trial_result(number, texts, -1e9)
            number += 1

    return _trials(search, Proposals(propose()), search.config.samples)


def search_grid(search: Search) -> list[Found]:
    """Every architecture of a small space, each trained on its own; enumerated by us, as NNI's grid can fail."""
    from nni_bertnas.search.evaluator import Proposals

    space = search.space
    first = {label: options[0] for label, options in space.choices().items()}
    samples = ({**first, **architecture} for architecture in space.every() if search.affordable(architecture))
    return _trials(search, Proposals((sample, lambda metric: None) for sample in samples), None)


def write(choice: Choice) -> str:
    """A choice as a text."""
    return choice if isinstance(choice, str) else "+".join(map(str, choice))


def _trials(search: Search, strategy: Any, max_trials: int | None) -> list[Found]:
    evaluator, config = search.make_evaluator(), search.config
    trained: dict[str, Found | None] = {}
    best, since_best = math.inf, 0

    def train(architecture: Architecture, cells: Sequence[Cell], share: float) -> Found | None:
        try:
            scores = evaluator.fit_cells(cells, config.epochs, share)
        except CandidateError as error:
            _log.warning("%s: %s", spell(architecture), error)
            return None
        return search.found(architecture, cells, scores)

    def metric(sample: Mapping[str, Choice]) -> float:
        nonlocal best, since_best
        architecture = search.space.canonical(sample)
        name = spell(architecture)
        if name not in trained:
            if since_best == config.patience:
                return -1e9  # nothing more is trained
            cells = [search.space.build(architecture) for _ in search.space.cells]
            evaluator.start_maps(cells)
            trained[name] = found = train(architecture, cells, 0.5**config.halvings)
            better = found is not None and found.score < (1 - _PLATEAU) * best
            best, since_best = (found.score, 0) if found is not None and better else (best, since_best + 1)
        found = trained[name]
        return -1e9 if found is None else -found.score

    search.run_trials(metric, strategy, max_trials)
    alive = [found for found in trained.values() if found is not None]
    for halving in reversed(range(config.halvings)):
        alive = sorted(alive, key=lambda one: one.score)[: max(config.candidates, -(-len(alive) // 2))]
        for number, found in enumerate(alive):
            cells = [cell.train() for cell in found.cells]
            alive[number] = train(found.architecture, cells, 0.5**halving) or found
    return alive


STRATEGIES: dict[str, Callable[[Search], list[Found]]] = {
    "darts": search_darts,
    "gumbel_darts": search_gumbel_darts,
    "proxyless": search_proxyless,
    "random_one_shot": search_random_one_shot,
    "enas": search_enas,
    "random": search_random,
    "evolution": search_evolution,
    "tpe": search_tpe,
    "grid": search_grid,
}
ONE_SHOT = ("darts", "gumbel_darts", "proxyless", "random_one_shot", "enas")
DIFFERENTIABLE = ("darts", "gumbel_darts", "proxyless")


def check_budget(search: Search) -> None:
    """Whether any architecture is within the study's `max_cost`.

    Raises:
        ConfigError: None is.
    """
    if search.costs is None or search.config.max_cost is None:
        return
    costs = search.costs
    sample = {
        label: min(options, key=lambda one: costs[one] if isinstance(one, str) else 0.0)
        for label, options in search.space.choices().items()
    }
    if not search.affordable(sample):
        raise ConfigError(
            f"cell.max_cost must be at least {search.cost(search.space.canonical(sample)):g} {search.config.cost}, "
            f"which the cheapest architecture of depth {search.space.depth} costs, got {search.config.max_cost:g}"
        )


def check_search(study: Study) -> None:
    """Whether the study's strategy can search its space.

    Raises:
        ConfigError: It cannot, with the reason and the remedy.
    """
    config, width = study.cell, study.student.hidden_size
    try:
        operations = space_operations(config.space, width, config.operations)
        counts = {depth: count_architectures(config.space, depth, operations, width) for depth in config.depths}
    except ValueError as error:
        raise ConfigError(f"cell.space, cell.operations: {error}") from error
    if config.strategy == "enas":
        if any(
            len(options[0]) > 1
            for options in list_choices(config.space, 1, operations, width).values()
            if isinstance(options[0], list)
        ):
            raise ConfigError(
                f"cell.strategy: enas cannot search {config.space}, as NNI's controller chooses one input at a "
                f"time and a node of it keeps {AdaBERT.EDGES}; choose random_one_shot"
            )
        if missing := [name for name in ("tianshou", "gym") if importlib.util.find_spec(name) is None]:
            raise ConfigError(
                f"cell.strategy: enas needs {' and '.join(missing)}, not installed: pip install 'nni-bertnas[enas]', "
                "or choose random_one_shot"
            )
    if config.strategy == "grid" and (large := {d: n for d, n in counts.items() if n > _GRID_LIMIT}):
        sizes = ", ".join(f"{count:,} at depth {depth}" for depth, count in large.items())
        raise ConfigError(
            f"cell.strategy: grid trains every architecture, and {config.space} has {sizes} (at most {_GRID_LIMIT:,}); "
            "name fewer cell.operations, lower cell.depths, or choose random or evolution"
        )
