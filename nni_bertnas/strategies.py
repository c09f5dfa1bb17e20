"""NNI's strategies by name. Each runs a real `NasExperiment` over a cell space and gives back trained cells."""

import heapq
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nni_bertnas.config import CellConfig
from nni_bertnas.errors import CandidateError

if TYPE_CHECKING:
    from nni_bertnas.evaluator import DistillationEvaluator
    from search_space.spaces import CellSpace
    from search_space.student import Cell

Architecture = Mapping[str, str]
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Found:
    """One architecture that a search came up with, its trained cell and its block score (lower is better)."""

    architecture: Architecture
    cell: "Cell"
    score: float


@dataclass(frozen=True, kw_only=True)
class Search:
    """What a strategy works on.

    Attributes:
        space: The cells to search.
        make_evaluator: Builds the evaluator of the block; takes what the strategy alone knows.
        config: Settings of the search.
        seed: Of the strategy.
        folder: Where NNI keeps its files.
    """

    space: "CellSpace"
    make_evaluator: "Callable[..., DistillationEvaluator]"
    config: CellConfig
    seed: int
    folder: Path

    def run(
        self, evaluator: "DistillationEvaluator", strategy: Any, model_format: str, max_trials: int | None = None
    ) -> None:
        """Run one `NasExperiment` in this process (NNI's sequential engine)."""
        from nni.nas.experiment import NasExperiment, NasExperimentConfig

        config = NasExperimentConfig("sequential", model_format)
        config.experiment_working_directory = str(self.folder.resolve())
        config.max_trial_number = max_trials
        experiment = NasExperiment(self.space, evaluator, strategy, config)
        try:
            experiment.run(port=0)
        finally:
            experiment.stop()


def search_darts(search: Search) -> list[Found]:
    """First-order DARTS (arXiv 1806.09055); then the most probable architectures go on from the supernet's weights."""
    from nni.nas.strategy import DARTS

    from search_space.spaces import extract_cell

    config = search.config
    evaluator = search.make_evaluator(architecture_share=config.architecture_share)
    evaluator.start_maps(search.space.cell)
    strategy = DARTS(
        arc_learning_rate=config.architecture_learning_rate,
        gradient_clip_val=config.gradient_clip,
        warmup_epochs=config.warmup_epochs,
    )
    search.run(evaluator, strategy, "raw")
    found = []
    for architecture in most_probable(strategy.oneshot_module.export_probs(), config.candidates):
        cell = extract_cell(strategy.supernet, architecture)
        try:
            found.append(Found(architecture, cell, evaluator.fit_cell(cell, config.candidate_epochs)))
        except CandidateError as error:
            _log.warning("%s: %s", architecture, error)
    return found


def most_probable(probabilities: Mapping[str, Mapping[str, float]], count: int) -> list[Architecture]:
    """The `count` architectures of the highest probability, best first; choices are independent."""
    best: list[tuple[float, dict[str, str]]] = [(0.0, {})]
    for label, choice in probabilities.items():
        longer = (
            (total + math.log(max(value, 1e-30)), {**architecture, label: name})
            for total, architecture in best
            for name, value in choice.items()
        )
        best = heapq.nlargest(count, longer, key=lambda pair: pair[0])
    return [architecture for _, architecture in best]


def search_random(search: Search) -> list[Found]:
    """Random search (Li and Talwalkar, arXiv 1902.07638): sampled architectures, each trained on its own."""
    import nni
    from nni.nas.strategy import Random

    found: list[Found] = []

    def keep(cell: Any, score: float) -> None:
        found.append(Found(dict(nni.get_current_parameter().sample), cell, score))

    evaluator = search.make_evaluator(on_trained=keep)
    search.run(evaluator, Random(seed=search.seed), "simplified", search.config.samples)
    return found


STRATEGIES: dict[str, Callable[[Search], list[Found]]] = {"darts": search_darts, "random": search_random}
