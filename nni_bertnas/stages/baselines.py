"""Stage baselines: students of random and uniform cells, to show whether the search was worth its time.

Their cells are drawn to match the searched student's of the same seed, trained as long, and chained and trained end to
end like it. A baseline's fingerprint holds the searched result's, never the other way round, so that asking for
baselines later makes nothing anew.
"""

import itertools
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from nni_bertnas.artifacts import fingerprint
from nni_bertnas.errors import CandidateError, ConfigError, PhaseError, lookup
from nni_bertnas.search.random_cells import ATTEMPTS, BASELINES, Baseline, Matching, latency_cost, params_cost
from nni_bertnas.search.strategies import OneShotOptions, find_strategy
from nni_bertnas.stages.cells import general_cells, load_ranked, starts_fresh, starts_general
from nni_bertnas.stages.run import Result, Run, Unit
from nni_bertnas.stages.stage import Stage, find
from nni_bertnas.stages.students import STUDENT, StudentMaker, describe, metrics
from nni_bertnas.student.candidates import Candidate
from nni_bertnas.tracking.tracker import Tracker
from nni_bertnas.training.trainer import pl

_log = logging.getLogger(__name__)
_LATENCY_ROWS = 20


def _units(run: Run) -> list[Unit]:
    counts = run.study.baseline.students
    names = [f"{kind}_{number}" for kind, count in counts.items() for number in range(count)]
    return [{"seed": run.study.seed, "student": name} for name in names]


def read_name(student: str) -> tuple[Baseline, int]:
    """The kind and the number of a baseline.

    Raises:
        ConfigError: There can be none of that name.
    """
    kind, _, number = student.rpartition("_")
    if not number.isdigit():
        raise ConfigError(f"student: must be KIND_NUMBER with a kind of {', '.join(BASELINES)}, got {student!r}")
    return lookup(BASELINES, kind, "student"), int(number)


def _check(run: Run, unit: Unit) -> None:
    read_name(unit["student"])


def _searched(run: Run, unit: Unit) -> Result:
    result = find(run, "supernet", {"seed": unit["seed"]})
    if result is None:
        raise PhaseError(f"seed {unit['seed']} has no searched student; make it with: bertnas supernet STUDY")
    return result


def _fingerprint(run: Run, unit: Unit) -> str:
    settings, searched = run.study.baseline, _searched(run, unit)
    # How many baselines there are changes none of them.
    return fingerprint(
        searched["fingerprint"], searched["architecture"], unit["student"], settings.match, settings.tolerance
    )


def _make(run: Run, unit: Unit, folder: Path, tracker: Tracker) -> Result:
    searched = _searched(run, unit)
    match = matching(run, searched)
    baseline, number = read_name(unit["student"])
    maker = StudentMaker(run, unit["seed"])
    maker.shape = replace(run.shape, **searched["shape"])
    candidates = _train(run, baseline, number, match, unit["student"], tracker)
    pl.seed_everything(unit["seed"], verbose=False)  # for what comes after, as of the searched student
    ratios = match.ratios(candidates) if baseline.by_block else [match.ratio(candidates)]
    return {
        "searched_fingerprint": searched["fingerprint"],
        "matched": {
            "match": run.study.baseline.match,
            "searched": match.targets,
            "own": [match.cost(one) for one in candidates],
            "ratio": match.ratio(candidates),
            "within_tolerance": all(abs(ratio - 1) <= match.tolerance for ratio in ratios),
        },
        **maker.train(candidates, unit["student"], folder, tracker),
    }


def matching(run: Run, searched: Result) -> Matching:
    """What the cells of baselines must have in common with those of a searched student."""
    settings, width, timed = run.study.baseline, run.study.student.hidden_size, run.study.supernet
    if not any(searched["depths"]):
        raise ConfigError("baseline.students: the searched student has no layers; no other cells match it")
    picked = [
        candidates[index] for candidates, index in zip(load_ranked(run), searched["selection"]["choice"], strict=True)
    ]
    lengths = run.dev.lengths[:_LATENCY_ROWS].tolist()
    cost = params_cost(width) if settings.match == "num_params" else latency_cost(
        width, picked[0], lengths, timed.latency_threads, timed.latency_runtime
    )  # fmt: skip
    return Matching(
        spaces=run.spaces,
        searched=picked,
        cost=cost,
        tolerance=settings.tolerance,
        shared=run.study.cell.shared,
        seed=run.study.seed,
    )


def _train(run: Run, baseline: Baseline, number: int, match: Matching, name: str, tracker: Tracker) -> list[Candidate]:
    """Draw a baseline and train its cells from fresh weights; if they do not train, draw another."""
    students = list(itertools.islice(baseline.students(match, number), ATTEMPTS))
    if not students:
        raise ConfigError(f"baseline.students: there is no {name}, the spaces have fewer; ask for fewer")
    for drawn in students:
        try:
            return train_cells(run, drawn, tracker)
        except CandidateError as error:
            _log.warning("%s, %s: %s", name, "; ".join(map(str, drawn)), error)
    raise PhaseError(f"no cells of {name} could be trained; see the log and lower cell.learning_rate")


def train_cells(run: Run, drawn: Sequence[Candidate], tracker: Tracker | None = None) -> list[Candidate]:
    """Train cells from fresh weights with the cell phase's settings and then the block phase's, for as many epochs.

    A one-shot search trains a candidate in the supernet and then alone, so that both numbers of epochs count here.

    Returns:
        The candidates with their cells in eval mode and their block scores.

    Raises:
        CandidateError: One did not train.
    """
    tracker = tracker or Tracker()
    study, width, teacher_size = run.study, run.study.student.hidden_size, run.train.hidden_size
    options = find_strategy(study.cell)[1]
    epochs = study.cell.epochs + (options.candidate_epochs if isinstance(options, OneShotOptions) else 0)
    blocks = range(run.num_blocks)
    found: list[Candidate] = []
    for group in [list(blocks)] if study.cell.shared else [[block] for block in blocks]:
        seed = run.seed(group[0], drawn[group[0]].depth)  # as a search of this block and depth has
        pl.seed_everything(seed, verbose=False)
        own = [drawn[block].fresh(teacher_size, width) for block in group]
        trainer = run.trainer(group[0], study.cell, tracker.part(f"cell{group[0]}"), seed=seed, blocks=len(group))
        trainer.start_maps([one.trained for one in own])
        trainer.fit_cells([one.trained for one in own], epochs)
        found += own
    fresh = starts_fresh(run)
    for block, one in enumerate(found):
        pl.seed_everything(run.seed(block), verbose=False)
        trainer = run.trainer(block, study.block, tracker.part(f"block{block}"), seed=run.seed(block))
        start = general_cells(run, block, [one], tracker) if starts_general(run) else [one]
        trained = trainer.train_on(start, width, fresh=fresh and not starts_general(run))
        if not trained:
            raise CandidateError(f"{one}: its block score is no number")
        found[block] = trained[0]
    for one in found:
        one.trained.eval()
    return found


STAGE = Stage(
    name="baselines",
    units=_units,
    fingerprint=_fingerprint,
    make=_make,
    describe=describe,
    parameters={"seed": int, "student": str},
    needs=lambda run, unit: [("supernet", {"seed": unit["seed"]})],
    check=_check,
    metrics=metrics,
    model=STUDENT,
    optimize="maximize",
    devices="supernet",
    alone=True,
    spares=lambda run, done: True,  # the searched student is there
    missing="set baseline.students, e.g. to {random: 3, uniform: 1}",
)
