"""Strategies that move the architecture by its gradient."""

import heapq
import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from nni.nas.nn.pytorch import InputChoice
from nni.nas.strategy import DARTS, Proxyless

from nni_bertnas.errors import ConfigError
from nni_bertnas.search.mixtures import mixed
from nni_bertnas.search.one_path import SharedGumbelDARTS
from nni_bertnas.search.one_shot import best_paths, inherited_score, train_on
from nni_bertnas.search.penalties import BetaDecay, EfficiencyPenalty, Penalty, ZeroOne
from nni_bertnas.search.search import Found, Search
from nni_bertnas.search.strategies import DartsOptions, DifferentiableOptions, GumbelOptions
from nni_bertnas.search.watch import ArchitectureWatch, OperationDropout, architecture_weights, probabilities
from nni_bertnas.student.candidates import kind_of, kinds_first
from search_space.cells import Architecture, Choice
from search_space.listing import Space
from search_space.spaces import CellSpace, EveryInput

_NEVER = -1e9  # an architecture weight whose gate is shut
_LIKELY = 5000  # most probable architectures among which affordable ones are looked for


def darts(search: Search) -> Found:
    """First-order DARTS (Liu et al., arXiv 1806.09055)."""
    return _search(search, DARTS)


def gumbel_darts(search: Search) -> Found:
    """DARTS with Gumbel-softmax samples (SNAS, arXiv 1812.09926), the temperature falling linearly by epoch."""
    assert isinstance(search.options, GumbelOptions)
    first, last = search.options.temperature
    return _search(search, SharedGumbelDARTS, temperature=(float(first), float(last)))


def proxyless(search: Search) -> Found:
    """ProxylessNAS (Cai et al., arXiv 1812.00332): one sampled path a step."""
    return _search(search, Proxyless)


def _search(search: Search, strategy_class: Any, **more: Any) -> Found:
    assert isinstance(search.options, DifferentiableOptions)
    supernet, penalty = train_supernet(search, strategy_class, **more)
    if search.options.ranking == "weights":
        return best_paths(search, supernet)
    by_harm = search.options.ranking == "perturbation"
    likely = _affordable(search, perturbation(search, supernet, penalty) if by_harm else probabilities(supernet))
    return train_on(search, supernet, [(one, inherited_score(search, supernet, one)) for one in likely])


def train_supernet(search: Search, strategy_class: Any, **more: Any) -> tuple[CellSpace, EfficiencyPenalty | None]:
    """A supernet, its weights and architecture trained, and the penalty on cost that was part of its loss.

    Args:
        search: Whose options are those of a differentiable strategy.
        strategy_class: NNI's.
        more: Arguments of that.
    """
    options = search.options
    assert isinstance(options, DifferentiableOptions)
    callbacks: list[Any] = [ArchitectureWatch(options.stable_epochs, options.warmup_epochs)]
    if options.operation_dropout:
        callbacks.append(OperationDropout(options.operation_dropout))
    penalties: dict[str, Penalty] = {}
    penalty = None
    if search.costs is not None and options.cost_weight:
        penalty = EfficiencyPenalty(search.costs.of_operations, options.cost_weight)
        penalties["expected_cost"] = penalty
    hooks: list[Any] = [_sum_all_edges]
    if isinstance(options, DartsOptions):
        fair, even = options.gates == "sigmoid", options.match_variance
        hooks.append(partial(mixed, dropout=options.mixture_dropout, independent=fair, matched=even))
        if fair:
            penalties["zero_one"] = ZeroOne()
        if options.beta_decay:
            penalties["beta_decay"] = decay = BetaDecay(options.beta_decay)
            callbacks.append(decay)
    space = search.supernet()
    strategy = strategy_class(
        arc_learning_rate=options.architecture_learning_rate,
        gradient_clip_val=search.trainer.settings.gradient_clip,
        warmup_epochs=options.warmup_epochs,
        mutation_hooks=hooks,
        **more,
    )
    evaluator = search.evaluator(
        architecture_share=options.architecture_share, callbacks=callbacks, penalties=penalties
    )
    search.run(space, evaluator, strategy, "raw")
    return strategy.supernet, penalty


@torch.no_grad()
def perturbation(
    search: Search, supernet: CellSpace, penalty: EfficiencyPenalty | None = None
) -> dict[str, dict[str, float]]:
    """How much every operation of a trained supernet is worth to it, as a distribution over each decision's options.

    One decision after another, in an order by the search's seed: each option is taken out of the mixture, the more that
    harms the block score the better it is; then the best alone is left and the next decision is looked at (Wang et al.,
    arXiv 2108.04392, section 4, without training between decisions). Architecture weights tell what learns fast: they
    hardly move from each other, and a convolution of one position leads wherever there is one.

    Args:
        search: That trained it.
        supernet: In which every operation runs.
        penalty: Of the expected cost, added to the block score.

    Returns:
        By decision the softmax of its options' harms in standard deviations, so that they are of one scale.
    """
    weights, found = architecture_weights(supernet), {}
    kept = {label: alpha.clone() for label, (_, alpha) in weights.items()}
    order = np.random.default_rng(search.seed).permutation(sorted(weights))
    for label in order.tolist():
        names, alpha = weights[label]
        harms = []
        for number in range(len(names)):
            alpha.copy_(kept[label])
            alpha[number] = _NEVER
            scores = search.trainer.score(list(supernet.cells), search.ranking_batches)
            harms.append(float(np.mean(scores)) + (0.0 if penalty is None else float(penalty(supernet))))
        alpha.fill_(_NEVER)
        alpha[int(np.argmax(harms))] = -_NEVER
        spread = torch.tensor(harms, dtype=torch.float64)
        shares = ((spread - spread.mean()) / spread.std(correction=0).clamp(min=1e-12)).softmax(0)
        found[label] = dict(zip(names, shares.tolist(), strict=True))
    for label, (_, alpha) in weights.items():
        alpha.copy_(kept[label])
    return {label: found[label] for label in weights}


def _affordable(search: Search, distribution: Mapping[str, Mapping[str, float]]) -> list[Architecture]:
    """The most probable architectures that are cheap enough, as many as are kept; of a mixture one of every kind first.

    What the mixture knows of kinds is least to be trusted: its most probable ones are all of one kind, which training
    each for a while then cannot put right.
    """
    assert isinstance(search.options, DifferentiableOptions)
    count = _LIKELY if search.limited or search.options.MIXES else search.candidates
    likely = most_probable(search.space, distribution, count)
    found = [architecture for architecture in likely if search.affordable(architecture)]
    if not found:
        assert search.costs is not None and search.costs.most is not None
        raise ConfigError(
            f"cell.max_cost {search.costs.most:g} is under the cost of all {count:,} most probable architectures; "
            "raise it, set cell.options.cost_weight, or set cell.options.ranking to weights"
        )
    return (kinds_first(found, kind_of) if search.options.MIXES else found)[: search.candidates]


def _sum_all_edges(module: Any, name: str, memo: Any, options: Any) -> Any:
    """NNI mutation hook: in a differentiable supernet a node sums all its edges (DARTS, section 2.1); which are kept
    is derived from the operations' probabilities."""
    if type(module) is InputChoice and module.n_chosen > 1:
        return EveryInput(module.n_candidates, module.n_chosen), True
    return None


def most_probable(space: Space, probabilities: Mapping[str, Mapping[str, float]], count: int) -> list[Architecture]:
    """The `count` architectures of the highest probability, best first, as the space derives them."""
    derived, choices = space.derive(probabilities), space.choices

    def read(label: str, name: str) -> Choice:
        return name if isinstance(choices[label][0], str) else [int(number) for number in name.split("+")]

    first = {label: read(label, max(derived[label], key=derived[label].__getitem__)) for label in choices}
    best: list[tuple[float, dict[str, Choice]]] = [(0.0, {})]
    for label in space.kind.canonical(first):
        longer = (
            (total + math.log(max(value, 1e-30)), {**architecture, label: read(label, name)})
            for total, architecture in best
            for name, value in derived[label].items()
        )
        best = heapq.nlargest(count, longer, key=lambda pair: pair[0])
    return [architecture for _, architecture in best]
