"""The cell phase with one NNI trial per architecture, so that the web UI shows which operation helps.

Another way to make what the stage `cell` makes. A trial's parameters are the space's decisions. Each trained cell is
kept; the ranking of its (block, depth) is written anew after every trial, in the cell phase's own format, so that the
block phase goes on from it.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nni_bertnas.artifacts import atomic_folder, check_whole, fingerprint, own_file, read_result
from nni_bertnas.config import to_dict
from nni_bertnas.errors import CandidateError, ConfigError
from nni_bertnas.search.parameters import read_parameters
from nni_bertnas.search.search import Search
from nni_bertnas.search.watch import collapse
from nni_bertnas.stages.cells import make_search, metrics, read_candidates
from nni_bertnas.stages.locks import one_at_a_time
from nni_bertnas.stages.run import Result, Run, Unit
from nni_bertnas.stages.stage import ensure, stage_fingerprint
from nni_bertnas.student.candidates import save_candidates
from nni_bertnas.tracking.tracker import Tracker
from nni_bertnas.training.trainer import pl
from search_space.cells import Architecture, spell

# What a trained cell does not depend on: NNI's tuner has its own search, and the architecture is hashed by itself.
_OF_SEARCH = ("depths", "strategy", "options", "candidates", "cost", "max_cost", "operations", "shared")


def run_architecture(
    run: Run, block: int, depth: int, parameters: Mapping[str, Any], tracker: Tracker | None = None
) -> Result:
    """Train and score the cell of one architecture from fresh weights; a finished one that still fits is reused.

    Makes the teacher and the features first where they are missing.

    Args:
        run: Of the study.
        block: Number of the block, from 0.
        depth: Searchable layers.
        parameters: NNI's, see :mod:`~nni_bertnas.search.parameters`.
        tracker: Takes the metrics.

    Returns:
        The cell's result: fingerprint, block, depth, candidates (this one).

    Raises:
        ConfigError: The parameters do not match the study, which may not have the block or the depth.
        CandidateError: The cell did not train, or is dearer than `cell.max_cost`.
    """
    tracker, settings = tracker or Tracker(), run.study.cell
    if depth not in settings.depths:
        raise ConfigError(f"--depth must be one of cell.depths {settings.depths}, got {depth}; correct trialCommand")
    if settings.shared:
        raise ConfigError("cell.shared must be false where every trial is one architecture of one block")
    run.check_block(block)
    architecture = read_parameters(run.spaces[depth], parameters)
    for name in ("teacher", "features", *dict(run.probe_stage)):
        ensure(run, name)
    search = make_search(run, block, depth, tracker)
    if not search.affordable(architecture):
        assert search.costs is not None
        cost = search.costs.of(architecture)
        raise CandidateError(f"{spell(architecture)}: its {settings.cost} {cost:g} is over cell.max_cost")
    unit = {"block": block, "depth": depth}
    folder = _trials(run, unit) / fingerprint(_settings(run, unit), architecture)
    result = read_result(folder, folder.name)
    if result is None:
        with tracker.working():
            result = _train(run, unit, architecture, search, folder)
    else:
        tracker.reuse()
    _rank(run, unit, search)
    tracker.final(metrics(run, result))
    return result


def _trials(run: Run, unit: Unit) -> Path:
    target = run.folder("cell", unit)
    return target.with_name(f"{target.name}_trials")


def _settings(run: Run, unit: Unit) -> str:
    training = {name: value for name, value in to_dict(run.study.cell).items() if name not in _OF_SEARCH}
    return fingerprint(
        stage_fingerprint(run, "features"),
        run.study.seed,
        run.study.student.hidden_size,
        training,
        unit["block"],
        unit["depth"],
    )


def _train(run: Run, unit: Unit, architecture: Architecture, search: Search, target: Path) -> Result:
    pl.seed_everything(run.study.seed, verbose=False)
    cells = search.build(architecture)
    try:
        scores = search.trainer.fit_cells(cells, search.trainer.settings.epochs)
    except CandidateError as error:
        raise CandidateError(f"{spell(architecture)}: {error}") from error
    with one_at_a_time(run.root, "ranking"):
        # A tuner may propose an architecture twice; the twin that ends first is kept.
        if (twin := read_result(target, target.name)) is not None:
            return twin
        with atomic_folder(target) as folder:
            group = search.group(architecture, cells, scores)
            candidates = save_candidates(folder, group, run.train.hidden_size, run.dev.lengths.tolist())
            result = {"fingerprint": target.name, **unit, "candidates": candidates}
            run.write(folder, result)
    return result


def _rank(run: Run, unit: Unit, search: Search) -> None:
    """Write the ranking of all trials that fit; the cell phase's own search is not found finished by it."""
    settings = _settings(run, unit)
    with one_at_a_time(run.root, "ranking"):
        fitting = []
        for folder in _trials(run, unit).glob("[!.]*"):
            result = read_result(folder)
            if result is None:
                continue
            (one,) = read_candidates(result)
            fits = result["fingerprint"] == fingerprint(settings, one.architecture)
            if fits and search.affordable(one.architecture):
                fitting.append((one, own_file(folder, one.weights)))
        fitting.sort(key=lambda pair: pair[0].score)
        with atomic_folder(run.folder("cell", unit)) as folder:
            candidates = []
            for rank, (one, weights) in enumerate(fitting[: run.study.cell.candidates]):
                candidates.append({**one.to_dict(), "weights": f"candidate_{rank}.safetensors"})
                check_whole(weights.parent)
                shutil.copyfile(weights, folder / candidates[-1]["weights"])
            result = {
                "fingerprint": fingerprint(settings, [one["architecture"] for one in candidates]),
                **unit,
                "space": run.study.cell.space,
                "strategy": "one NNI trial per architecture",
                "num_searched": len(fitting),
                "collapsed": collapse(candidates[0]["architecture"], run.study.student.hidden_size),
                "candidates": candidates,
            }
            run.write(folder, result)
