"""Strategies that train every architecture they try on its own."""

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from nni import NoMoreTrialError
from nni.algorithms.hpo.tpe_tuner import TpeTuner
from nni.nas.strategy import Random, RegularizedEvolution
from nni.nas.strategy.base import Strategy

from nni_bertnas.errors import CandidateError
from nni_bertnas.search.evaluator import FAILED
from nni_bertnas.search.search import Found, Group, Search, mean_score
from nni_bertnas.search.strategies import EvolutionOptions, GridOptions, RandomOptions, TrialOptions
from search_space.cells import Architecture, Cell, Choice, spell, spell_choice

_PLATEAU = 0.01  # a score that is not lower by this share is no progress
_log = logging.getLogger(__name__)
Proposal = tuple[Mapping[str, Choice], Callable[[float], None]]  # a sample, and what takes its metric


def random_search(search: Search) -> Found:
    """Random search (Li and Talwalkar, arXiv 1902.07638): sampled architectures, each trained on its own.

    With `halvings`, successive halving (Jamieson and Talwalkar, arXiv 1502.07943): the better half is trained on, on
    twice as many rows.
    """
    options = search.options
    assert isinstance(options, RandomOptions)
    trials = Trials(search, options.patience, 0.5**options.halvings)
    search.run_trials(trials.metric, Random(seed=search.seed), options.samples)
    alive = trials.trained
    for halving in reversed(range(options.halvings)):
        alive = sorted(alive, key=mean_score)[: max(search.candidates, -(-len(alive) // 2))]
        alive = [trials.train_on(group, 0.5**halving) for group in alive]
    return Found(groups=alive)


def evolution(search: Search) -> Found:
    """Regularised evolution (Real et al., arXiv 1802.01548), each architecture trained on its own."""
    options = search.options
    assert isinstance(options, EvolutionOptions)
    population = min(options.population, max(2, options.samples // 2))
    strategy = RegularizedEvolution(
        population_size=population, sample_size=max(1, population // 2), mutation_prob=0.25, seed=search.seed
    )
    return _search(search, strategy, options.patience, options.samples)


def tpe(search: Search) -> Found:
    """Tree-structured Parzen estimator (Bergstra et al., 2011): NNI's tuner, each architecture trained on its own.

    NNI's own TPE strategy cannot describe an `InputChoice` to its tuner; ours spells it as a choice of texts.
    """
    assert isinstance(search.options, TrialOptions)
    tuner = TpeTuner(optimize_mode="maximize", seed=search.seed)
    texts = {label: {spell_choice(one): one for one in some} for label, some in search.space.choices.items()}
    tuner.update_search_space({label: {"_type": "choice", "_value": list(some)} for label, some in texts.items()})

    def propose() -> Iterator[Proposal]:
        number = 0
        while True:
            try:
                chosen = tuner.generate_parameters(number)
            except NoMoreTrialError:  # a space smaller than the samples asked for
                return
            sample = {label: texts[label][text] for label, text in chosen.items()}
            if search.affordable(sample):
                yield sample, partial(tuner.receive_trial_result, number, chosen)
            else:
                tuner.receive_trial_result(number, chosen, FAILED)
            number += 1

    return _search(search, Proposals(propose()), search.options.patience, search.options.samples)


def grid(search: Search) -> Found:
    """Every architecture of a small space, each trained on its own; enumerated by us, as NNI's grid can fail."""
    assert isinstance(search.options, GridOptions)
    first = {label: options[0] for label, options in search.space.choices.items()}
    samples = ({**first, **one} for one in search.space.every() if search.affordable(one))
    return _search(
        search, Proposals((sample, lambda metric: None) for sample in samples), search.options.patience, None
    )


def _search(search: Search, strategy: Any, patience: int | None, samples: int | None) -> Found:
    trials = Trials(search, patience)
    search.run_trials(trials.metric, strategy, samples)
    return Found(groups=trials.trained)


class Trials:
    """The architectures that a strategy tries, each trained once.

    Args:
        search: What is searched.
        patience: How many in a row may not lower the best score by 1 % before no more are trained; None: any number.
        share: Of the rows that each is trained on.
    """

    def __init__(self, search: Search, patience: int | None, share: float = 1.0) -> None:
        self.search, self.patience, self.share = search, patience, share
        self._known: dict[str, Group | None] = {}
        self._best, self._since_best = math.inf, 0

    @property
    def trained(self) -> list[Group]:
        """Those that a score came out of."""
        return [group for group in self._known.values() if group is not None]

    def metric(self, sample: Mapping[str, Choice]) -> float:
        """Minus the mean block score of a sample, as NNI's strategies look for what is high."""
        architecture = self.search.space.canonical(sample)
        name = spell(architecture)
        if name not in self._known:
            if self._since_best == self.patience:
                return FAILED  # nothing more is trained
            group = self._train(architecture, self.search.build(architecture), self.share)
            self._known[name] = group
            if group is not None and mean_score(group) < (1 - _PLATEAU) * self._best:
                self._best, self._since_best = mean_score(group), 0
            else:
                self._since_best += 1
        found = self._known[name]
        return FAILED if found is None else -mean_score(found)

    def train_on(self, group: Group, share: float) -> Group:
        """A group trained further; as it was where that fails."""
        cells = [one.trained.train() for one in group]
        return self._train(group[0].architecture, cells, share) or group

    def _train(self, architecture: Architecture, cells: Sequence[Cell], share: float) -> Group | None:
        trainer = self.search.trainer
        try:
            scores = trainer.fit_cells(cells, trainer.settings.epochs, share)
        except CandidateError as error:
            _log.warning("%s: %s", spell(architecture), error)
            return None
        return self.search.group(architecture, cells, scores)


class Proposals(Strategy):
    """NNI strategy that submits the samples of an iterator one by one and tells each its metric.

    Args:
        proposals: Samples, each with what takes its metric.
    """

    def __init__(self, proposals: Iterable[Proposal]) -> None:
        super().__init__()
        self.proposals = iter(proposals)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: a search that is interrupted starts anew."""
        return {}

    def _run(self) -> None:
        for sample, tell in self.proposals:
            if not self.wait_for_resource():
                return
            model = self.model_space.freeze(dict(sample))
            self.engine.submit_models(model)
            if model.metric is not None:
                tell(model.metric)
