"""Strategies that train one path of a supernet a step, and what all one-shot strategies do with a trained supernet."""

import heapq
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
from nni.mutable import mutable
from nni.nas.strategy import RandomOneShot, RegularizedEvolution

from nni_bertnas.errors import CandidateError, ConfigError
from nni_bertnas.search.enas import MendedENAS
from nni_bertnas.search.evaluator import FAILED
from nni_bertnas.search.search import Found, Search
from nni_bertnas.search.strategies import EnasOptions, OneShotOptions
from search_space.cells import Architecture, Choice, spell
from search_space.spaces import CellSpace, extract_cells

_log = logging.getLogger(__name__)
Path = tuple[Architecture, float]  # with its inherited score


def random_one_shot(search: Search) -> Found:
    """One uniformly sampled path a step (SPOS, arXiv 1904.00420; DNA, arXiv 1911.13053), then the ranking of paths."""
    strategy = RandomOneShot(filter=search.affordable if search.limited else None)
    try:
        with _seeded():
            search.run(search.supernet(), search.evaluator(), strategy, "raw")
    except RuntimeError as error:
        if "valid architecture" not in str(error):
            raise
        assert search.costs is not None and search.costs.most is not None
        raise ConfigError(
            f"cell.max_cost {search.costs.most:g} leaves so few architectures that none of 100 drawn is cheap "
            "enough; raise it, or leave dear ones out of cell.operations"
        ) from error
    return best_paths(search, strategy.supernet)


@contextmanager
def _seeded() -> Iterator[None]:
    """Let NNI draw paths from numpy's generator, which a search seeds; of its own it makes a new one for each."""
    before = mutable.RandomState
    mutable.RandomState = lambda: np.random.mtrand._rand
    try:
        yield
    finally:
        mutable.RandomState = before


def enas(search: Search) -> Found:
    """ENAS (Pham et al., arXiv 1802.03268): a controller, trained with PPO, samples the paths; then their ranking."""
    options = search.options
    assert isinstance(options, EnasOptions)
    evaluator = search.evaluator(architecture_share=options.architecture_share)
    strategy = MendedENAS(
        # At least one update of the controller an epoch; a few samples each, as their advantages are normalised.
        batches_per_update=max(5, min(20, len(evaluator.val_dataloaders))),
        reward_metric_name="reward",
        gradient_clip=search.trainer.settings.gradient_clip,
        warmup_epochs=options.warmup_epochs,
    )
    search.run(search.supernet(), evaluator, strategy, "raw")
    return best_paths(search, strategy.supernet)


def inherited_score(search: Search, supernet: CellSpace, architecture: Architecture) -> float:
    """The mean block score of one path with the supernet's weights; infinite where it is no number."""
    try:
        return float(np.mean(search.trainer.score(extract_cells(supernet, architecture), search.ranking_batches)))
    except CandidateError:
        return math.inf


def rank_paths(search: Search, supernet: CellSpace) -> dict[str, Path]:
    """Paths of a one-shot supernet with their inherited scores on dev, by spelling.

    Every path of a space of at most `rank_limit` architectures (DNA, arXiv 1911.13053, section 3.3), otherwise those
    that NNI's regularised evolution (arXiv 1802.01548) tries in `rank_limit` steps.
    """
    options, space = search.options, search.space
    assert isinstance(options, OneShotOptions)
    scored: dict[str, Path] = {}

    def score(sample: Mapping[str, Choice]) -> float:
        architecture = space.canonical(sample)
        name = spell(architecture)
        if name not in scored:
            scored[name] = architecture, inherited_score(search, supernet, architecture)
        return scored[name][1]

    if space.count() <= options.rank_limit:
        for architecture in space.every():
            if search.affordable(architecture):
                score(architecture)
    else:
        population = max(2, min(options.population, options.rank_limit // 2))
        strategy = RegularizedEvolution(
            population_size=population, sample_size=max(1, population // 4), mutation_prob=0.25, seed=search.seed
        )
        search.run_trials(lambda sample: -min(score(sample), -FAILED), strategy, options.rank_limit)
    return scored


def best_paths(search: Search, supernet: CellSpace) -> Found:
    """The best paths with inherited weights, trained on."""
    paths = rank_paths(search, supernet)
    return train_on(search, supernet, heapq.nsmallest(search.candidates, paths.values(), lambda path: path[1]), paths)


def train_on(
    search: Search, supernet: CellSpace, chosen: Sequence[Path], paths: Mapping[str, Path] | None = None
) -> Found:
    """Train the chosen paths on from the supernet's weights, each on its own."""
    assert isinstance(search.options, OneShotOptions)
    groups = []
    for architecture, inherited in chosen:
        cells = extract_cells(supernet, architecture)
        try:
            scores = search.trainer.fit_cells(cells, search.options.candidate_epochs)
        except CandidateError as error:
            _log.warning("%s: %s", spell(architecture), error)
        else:
            groups.append(search.group(architecture, cells, scores, inherited))
    return Found(groups=groups, paths=paths or {})
