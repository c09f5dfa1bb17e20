"""What a strategy works on, and what it gives back."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from nni.nas.experiment import NasExperiment, NasExperimentConfig
from nni.nas.strategy.middleware import Chain, Filter

from nni_bertnas.data.batches import Batch
from nni_bertnas.errors import ConfigError
from nni_bertnas.search.evaluator import FAILED, DistillationEvaluator, SampleEvaluator
from nni_bertnas.search.strategies import OneShotOptions, Options
from nni_bertnas.student.candidates import Candidate
from nni_bertnas.training.cells import CellTrainer, score_batches
from search_space.cells import Architecture, Cell, Choice
from search_space.listing import Space
from search_space.spaces import CellSpace

Group = tuple[Candidate, ...]  # candidates of one architecture with their cells, one per block


def mean_score(group: Group) -> float:
    """The block score of an architecture: the mean over its blocks."""
    return float(np.mean([one.score for one in group]))


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a search came up with.

    Attributes:
        groups: The architectures that it trained.
        paths: Of a supernet whose paths were ranked: every scored architecture with its inherited score, by spelling.
    """

    groups: Sequence[Group]
    paths: Mapping[str, tuple[Architecture, float]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What operations cost, and what an architecture may.

    Attributes:
        kind: `num_params`, `num_flops` or `latency_ms`.
        of_operations: By name.
        most: That all operations of a cell may cost together; None sets no limit.
    """

    kind: str
    of_operations: Mapping[str, float]
    most: float | None = None

    def of(self, architecture: Architecture) -> float:
        """Of an architecture's operations together."""
        return sum(self.of_operations[name] for name in architecture.values() if isinstance(name, str))

    def check(self, space: Space) -> None:
        """Whether any architecture of a space is within the limit.

        Raises:
            ConfigError: None is.
        """
        if self.most is None:
            return
        cheapest = space.canonical(
            {
                label: min(options, key=lambda one: self.of_operations[one] if isinstance(one, str) else 0.0)
                for label, options in space.choices.items()
            }
        )
        if self.of(cheapest) > self.most:
            raise ConfigError(
                f"cell.max_cost must be at least {self.of(cheapest):g} {self.kind}, which the cheapest architecture of "
                f"depth {space.depth} costs, got {self.most:g}"
            )


@dataclass(frozen=True, kw_only=True)
class Search:
    """What a strategy works on.

    Attributes:
        space: What is searched.
        trainer: Trains and scores cells.
        options: Of the strategy.
        candidates: How many architectures are kept.
        seed: Of the strategy.
        folder: Where NNI keeps its files.
        costs: Of the operations, where the study names a cost.
    """

    space: Space
    trainer: CellTrainer
    options: Options
    candidates: int
    seed: int
    folder: Path
    costs: Costs | None = None

    def supernet(self) -> CellSpace:
        """Cells with every decision open, their maps at the best linear ones; a one-shot strategy takes it for good."""
        space = CellSpace.of(self.space, self.trainer.train.hidden_size, self.trainer.blocks)
        self.trainer.start_maps(space.cells)
        return space

    def evaluator(self, **options: Any) -> DistillationEvaluator:
        """What trains a supernet; options are those of the evaluator beside what this search has."""
        trainer = self.trainer
        return DistillationEvaluator(
            train=trainer.train,
            dev=trainer.dev,
            edges=trainer.edges,
            settings=trainer.settings,
            probes=trainer.probes,
            attention=trainer.attention,
            precision=trainer.precision,
            seed=trainer.seed,
            report=trainer.report,
            **options,
        )

    def affordable(self, sample: Mapping[str, Choice]) -> bool:
        """Whether a sample's operations together cost no more than they may."""
        if self.costs is None or self.costs.most is None:
            return True
        return self.costs.of(self.space.canonical(sample)) <= self.costs.most

    @property
    def limited(self) -> bool:
        """Whether there is a limit on an architecture's cost."""
        return self.costs is not None and self.costs.most is not None

    @cached_property
    def ranking_batches(self) -> list[Batch]:
        """The rows of dev on which paths of a supernet are scored, always the same ones."""
        assert isinstance(self.options, OneShotOptions)
        trainer = self.trainer
        rows = np.random.default_rng(self.seed).permutation(len(trainer.dev))[: self.options.rank_rows]
        return list(score_batches(trainer.dev, trainer.edges, rows))

    def build(self, architecture: Architecture) -> list[Cell]:
        """A fresh cell of an architecture for every block, their maps at the best linear ones."""
        cells = [self.space.build(architecture, self.trainer.train.hidden_size) for _ in range(self.trainer.blocks)]
        self.trainer.start_maps(cells)
        return cells

    def group(
        self, architecture: Architecture, cells: Sequence[Cell], scores: Sequence[float], inherited: float | None = None
    ) -> Group:
        """Trained cells as candidates."""
        one = Candidate(space=self.space.name, depth=self.space.depth, architecture=architecture, inherited=inherited)
        return tuple(replace(one, score=score, cell=cell) for cell, score in zip(cells, scores, strict=True))

    def run(
        self, space: CellSpace, evaluator: Any, strategy: Any, model_format: str, max_trials: int | None = None
    ) -> None:
        """See :func:`run_experiment`."""
        run_experiment(space, evaluator, strategy, model_format, self.folder, max_trials)

    def run_trials(
        self, metric: Callable[[Mapping[str, Choice]], float], strategy: Any, max_trials: int | None
    ) -> None:
        """Let a multi-trial strategy of NNI look for the sample of the highest metric, among those cheap enough."""
        if self.limited:
            strategy = Chain(strategy, Filter(lambda model: self.affordable(model.sample), metric_for_invalid=FAILED))
        space = CellSpace.of(self.space, self.trainer.train.hidden_size, self.trainer.blocks)
        self.run(space, SampleEvaluator(metric), strategy, "simplified", max_trials)


def run_experiment(
    space: Any, evaluator: Any, strategy: Any, model_format: str, folder: Path, max_trials: int | None = None
) -> None:
    """Run one `NasExperiment` in this process (NNI's sequential engine).

    Args:
        space: NNI's model space.
        evaluator: NNI's.
        strategy: NNI's.
        model_format: `raw` for one-shot strategies, `simplified` for others.
        folder: Where NNI keeps its files.
        max_trials: Samples at most; None: as many as the strategy makes.
    """
    config = NasExperimentConfig("sequential", model_format)
    config.experiment_working_directory = str(folder.resolve())
    config.max_trial_number = max_trials
    experiment = NasExperiment(space, evaluator, strategy, config)
    try:
        experiment.run(port=0)
    finally:
        experiment.stop()
