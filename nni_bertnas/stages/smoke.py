"""A study made small: all its stages, through the same code, in a minute or two. What comes out means nothing."""

import dataclasses
from typing import Any, TypeVar

from nni_bertnas.config import BudgetSettings, Study, TrackingSettings, to_dict
from nni_bertnas.data.tasks import task_spec
from nni_bertnas.search.strategies import find_strategy

SUFFIX = "-smoke"
_TRAIN, _EVAL, _MORE = 256, 64, 128  # rows: of train, of dev and test each, of text without labels
_CELL = 128  # rows of train that cells are trained on
# Of the options of strategies, whichever has them.
_OPTIONS = {"samples": 2, "halvings": 1, "candidate_epochs": 1, "rank_limit": 8, "rank_rows": 32, "warmup_epochs": 0}
_SUPERNET = {"epochs": 1, "epoch_rows": _TRAIN, "last_epochs": 1, "finalists": 2, "search_epochs": 1, "students": 1}
_Settings = TypeVar("_Settings", bound=Any)


def smoke(study: Study) -> Study:
    """A study with few rows, one epoch and few samples, under a name of its own.

    What it searches in, its losses, heads and shapes stay; of the cells' depths the first alone is tried.
    """
    cell, pairs = study.cell, task_spec(study.task).pairs
    options = to_dict(find_strategy(cell)[1])
    options |= {name: _lower(options[name], most) for name, most in _OPTIONS.items() if name in options}
    general = dataclasses.replace(
        study.general, rows=0 if study.general.rows is None and not pairs else study.general.rows
    )
    # Baselines need a searched student with layers, which so little training may not choose.
    bare = study.block.no_layer and not study.baseline.students
    supernet = _at_most(study.supernet, **_SUPERNET)
    # With a cell without layers among the candidates, what fits no student here fits none of the whole study either.
    budget = supernet.budget if bare else BudgetSettings()
    return dataclasses.replace(
        study,
        name=study.name + SUFFIX,
        task=_at_most(study.task, max_train_rows=_TRAIN, max_eval_rows=_EVAL),
        teacher=_at_most(study.teacher, epochs=1),
        transfer=_at_most(study.transfer, max_rows=_MORE, reviews=_MORE),
        general=_at_most(general, rows=_MORE, cells=_EVAL, epochs=1),
        pairs=_at_most(study.pairs, bm25=1, near=1, beyond=1, random=1),
        augment=_at_most(study.augment, copies=1, corruptions=1, fit_epochs=1),
        cell=dataclasses.replace(
            _at_most(cell, epochs=1, max_rows=_CELL, candidates=2), depths=cell.depths[:1], options=options
        ),
        block=dataclasses.replace(
            _at_most(study.block, epochs=1, max_rows=_CELL, candidates=2, replaced_rows=_EVAL), no_layer=bare
        ),
        supernet=dataclasses.replace(
            supernet, budget=budget, bag=supernet.bag and not study.baseline.students, half=False
        ),
        baseline=dataclasses.replace(study.baseline, students=dict.fromkeys(study.baseline.students, 1)),
        tracking=TrackingSettings(),
    )


def _at_most(settings: _Settings, **limits: int) -> _Settings:
    """A section with some numbers lowered; null is no limit."""
    return dataclasses.replace(
        settings, **{name: _lower(getattr(settings, name), most) for name, most in limits.items()}
    )


def _lower(value: int | None, most: int) -> int:
    return most if value is None else min(value, most)
