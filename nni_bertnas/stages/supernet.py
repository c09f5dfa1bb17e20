"""Phase 3, supernet: choose one candidate per block, chain them, train the student end to end, save it.

The baselines that a study asks for go the same way; their cells are drawn to match the searched student of the same
seed, and trained here as long as the cell and block phases have trained the searched ones.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from nni_bertnas.artifacts import RunDirectory, atomic_folder, fingerprint, read_result, write_result
from nni_bertnas.augment.replace import augment_fingerprint, open_augmented
from nni_bertnas.config import Study, study_to_dict
from nni_bertnas.data.batches import load_task, make_loader, make_stream, tokenize
from nni_bertnas.data.tasks import task_spec
from nni_bertnas.errors import PhaseError
from nni_bertnas.search.random_cells import SEARCHED, Baselines, check_name, student_names, train_student
from nni_bertnas.store.reader import FeatureDataset, open_features, study_edges
from nni_bertnas.student.candidates import Candidate, load_cell
from nni_bertnas.student.cost import Call, cell_call, count_flops, count_params, measure_latency_ms, model_call
from nni_bertnas.student.selection import Combination, Option, combinations
from nni_bertnas.tracking import Tracker

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from search_space.cells import Cell
    from search_space.student import StudentForSequenceClassification

_log = logging.getLogger(__name__)
NAMES = ("seed", "student")
OPTIMIZE = "maximize"
STUDENT = "student"  # folder of the saved model inside the result
_LATENCY_ROWS = 60  # real rows whose lengths a latency is measured at,
_LATENCY_REPEATS = 3  # each so often


def units(study: Study, num_blocks: int) -> list[dict[str, Any]]:
    """The parameters of every unit of work of this phase, the searched student first."""
    return [{"seed": study.seed, "student": student} for student in student_names(study.baseline)]


def find(study: Study, seed: int, student: str = SEARCHED) -> dict[str, Any] | None:
    """The finished result of one student, if it still fits the study and its blocks, or the searched student."""
    rankings = _rankings(study)
    searched = read_result(RunDirectory(study).supernet(seed), _fingerprint(study, seed, rankings))
    if student == SEARCHED or searched is None:
        return searched
    return read_result(RunDirectory(study).supernet(seed, student), _baseline_fingerprint(study, student, searched))


def _rankings(study: Study) -> list[dict[str, Any]]:
    num_blocks = len(study_edges(study)) - 1
    rankings = [read_result(RunDirectory(study).block(block)) for block in range(num_blocks)]
    if missing := [str(block) for block, ranking in enumerate(rankings) if ranking is None]:
        raise PhaseError(
            f"block {', '.join(missing)} has no ranking; make it with: bertnas block STUDY "
            "(or nnictl create --config experiment_configs/block.yml)"
        )
    return [ranking for ranking in rankings if ranking is not None]


def _fingerprint(study: Study, seed: int, rankings: list[dict[str, Any]]) -> str:
    settings = study_to_dict(study)
    parts = [settings[part] for part in ("student", "supernet", "distill")]
    if study.augment.copies:
        parts += [augment_fingerprint(study), study.augment.copies]
    return fingerprint([ranking["fingerprint"] for ranking in rankings], seed, parts)


def _baseline_fingerprint(study: Study, student: str, searched: Mapping[str, Any]) -> str:
    settings = study_to_dict(study)["baseline"]
    # How many baselines there are changes none of them.
    parts = student, settings["match"], settings["tolerance"]
    return fingerprint(searched["fingerprint"], searched["architecture"], *parts)


def run(study: Study, seed: int, student: str = SEARCHED, tracker: Tracker | None = None) -> dict[str, Any]:
    """Train one student from the blocks' rankings, or a baseline; a finished result that still fits is reused.

    Args:
        study: The study.
        seed: Of the end-to-end training; several seeds give several students.
        student: `searched`, or `random_<number>` or `uniform` for a baseline, which matches the searched one of the
            seed and makes it first where it is missing.
        tracker: Takes the metrics.

    Returns:
        The result: fingerprint, architecture, teacher and student with score, parameters, FLOPs and latency; of a
        baseline also how it matches.

    Raises:
        ConfigError: There is no such student.
        PhaseError: The block phase has not been run, nothing fits the budget, or a baseline cannot be trained.
    """
    check_name(student)
    tracker = tracker or Tracker()
    result = find(study, seed, student)
    if result is None:
        if student != SEARCHED and find(study, seed) is None:
            _train(study, seed, SEARCHED, Tracker())
        result = _train(study, seed, student, tracker)
    metric = task_spec(study.task).metric
    own = result["student"]
    tracker.final(
        {
            "default": own[f"dev_{metric}"],
            **{name: value for name, value in own.items() if name.endswith(f"_{metric}")},
            "num_params": own["num_params"],
            "latency_ms": own["latency_ms"],
            "speedup": result["speedup"],
        }
    )
    return result


@dataclass(frozen=True, kw_only=True)
class _Parts:
    """The trained cell of every block, and what the result says about them."""

    candidates: Sequence[Mapping[str, Any]]  # space, depth, architecture, score
    cells: "Sequence[Cell]"
    facts: Mapping[str, Any]


def _train(study: Study, seed: int, kind: str, tracker: Tracker) -> dict[str, Any]:
    from nni_bertnas.training.teacher import load_teacher
    from nni_bertnas.training.trainer import pl

    start = time.perf_counter()
    pl.seed_everything(seed, verbose=False)
    teacher, tokenizer = load_teacher(study)
    lengths = open_features(study, "dev").lengths[:_LATENCY_ROWS].tolist() * _LATENCY_REPEATS
    parts = _searched(study, seed, teacher, lengths) if kind == SEARCHED else _baseline(study, seed, kind)
    model, trained = _distill(study, seed, teacher, parts, tracker)
    sides = _compare(study, {"teacher": teacher, "student": model}, tokenizer, lengths)
    result = {
        "seed": seed,
        "student_kind": kind,
        "architecture": [one["architecture"] for one in parts.candidates],
        "depths": [one["depth"] for one in parts.candidates],
        "block_scores": [one["score"] for one in parts.candidates],
        **parts.facts,
        **trained,
        **sides,
        "speedup": sides["teacher"]["latency_ms"] / sides["student"]["latency_ms"],
        "latency_threads": study.supernet.latency_threads,
        "seconds": time.perf_counter() - start,
    }
    with atomic_folder(RunDirectory(study).supernet(seed, kind)) as folder:
        model.save_pretrained(folder / STUDENT)
        tokenizer.save_pretrained(folder / STUDENT)
        write_result(folder, study, result)
    return result


def _searched(study: Study, seed: int, teacher: "PreTrainedModel", lengths: list[int]) -> _Parts:
    """The best combination of the blocks' candidates within the budget."""
    run_directory, teacher_size = RunDirectory(study), open_features(study, "train").hidden_size
    rankings = _rankings(study)
    blocks: list[list[Candidate]] = [ranking["candidates"] for ranking in rankings]
    cells = [
        [load_cell(run_directory.block(block), one, teacher_size, study.student.hidden_size) for one in candidates]
        for block, candidates in enumerate(blocks)
    ]
    chosen = choose(study, teacher, blocks, cells, lengths)
    return _Parts(
        candidates=[candidates[index] for candidates, index in zip(blocks, chosen.choice, strict=True)],
        cells=[block_cells[index] for block_cells, index in zip(cells, chosen.choice, strict=True)],
        facts={"fingerprint": _fingerprint(study, seed, rankings), "selection": asdict(chosen)},
    )


def _baseline(study: Study, seed: int, student: str) -> _Parts:
    """Random or uniform cells that match those of the searched student, trained as long."""
    from nni_bertnas.training.trainer import pl

    searched = find(study, seed)
    assert searched is not None
    choice = searched["selection"]["choice"]
    picked = [ranking["candidates"][index] for ranking, index in zip(_rankings(study), choice, strict=True)]
    train, dev = open_features(study, "train"), open_features(study, "dev")
    baselines = Baselines(study, picked, dev.lengths.tolist())
    drawn, cells, scores = train_student(baselines, student, train, dev)
    pl.seed_everything(seed, verbose=False)  # for what comes after, as of the searched student
    return _Parts(
        candidates=[
            {"space": study.cell.space, "depth": one.depth, "architecture": dict(one.architecture), "score": score}
            for one, score in zip(drawn, scores, strict=True)
        ],
        cells=cells,
        facts={
            "fingerprint": _baseline_fingerprint(study, student, searched),
            "searched_fingerprint": searched["fingerprint"],
            "matched": baselines.facts(student, drawn),
        },
    )


def _distill(
    study: Study, seed: int, teacher: "PreTrainedModel", parts: _Parts, tracker: Tracker
) -> tuple["StudentForSequenceClassification", dict[str, Any]]:
    """Chain the cells and train the student end to end."""
    from nni_bertnas.training.student import StudentDistillation, check_chain, new_student
    from nni_bertnas.training.trainer import EpochReport, KeepBest, fit, pl

    config, metric = study.supernet, f"dev_{task_spec(study.task).metric}"
    train = open_features(study, "train")
    student = new_student(study, teacher, parts.candidates)
    student.load_cells(parts.cells)
    dev_loader = _dev_loader(study)
    difference = check_chain(student, parts.cells, next(iter(dev_loader)))
    edges = train.edges[1:] if study.distill.hidden_weight else ()
    sources = [FeatureDataset(train, edges, tokens=True)]
    if len(rest := np.setdiff1d(np.arange(len(train)), sources[0].rows)):  # whose hidden states are not stored
        sources.append(FeatureDataset(train, (), tokens=True, rows=rest))
    if study.augment.copies:
        store, rows = open_augmented(study)
        sources.append(FeatureDataset(store, (), tokens=True, rows=rows))
    loader = make_stream(sources, config.batch_size, seed=seed, epoch_rows=config.epoch_rows)
    module = StudentDistillation(student, parts.cells, train, study, len(loader) * config.epochs).train()
    best = KeepBest(metric, student)
    callbacks = [best, EpochReport(lambda metrics: tracker.epoch(metrics, metric))]
    if config.patience is not None:
        callbacks.append(pl.callbacks.EarlyStopping(metric, mode="max", patience=config.patience))
    fit(module, loader, dev_loader, config.epochs, callbacks, study.student.precision)
    return student.eval(), {"chain_difference": difference, "epoch_of_best": best.epoch}


def _dev_loader(study: Study) -> Any:
    return make_loader(FeatureDataset(open_features(study, "dev"), (), tokens=True), 128, shuffle=False)


def _compare(study: Study, models: Mapping[str, Any], tokenizer: Any, lengths: list[int]) -> dict[str, dict[str, Any]]:
    """Scores and costs of models, their latencies measured in turns."""
    from nni_bertnas.training.metrics import evaluate_classifier

    data, spec = load_task(study.task), task_spec(study.task)
    loaders = {"dev": _dev_loader(study)}
    for split in data.final_splits:
        tokens = tokenize(tokenizer, data.splits[split], study.task.max_length)
        loaders[split] = make_loader(tokens, 128, shuffle=False)
    calls = {name: model_call(model, lengths) for name, model in models.items()}
    latency_ms = measure_latency_ms(calls, lengths, threads=study.supernet.latency_threads)
    return {
        side: {
            **{
                f"{split}_{name}": value
                for split, loader in loaders.items()
                for name, value in evaluate_classifier(model, loader, spec).items()
            },
            "num_params": count_params(model),
            "num_flops": count_flops(calls[side], sorted(lengths)[len(lengths) // 2]),
            "latency_ms": latency_ms[side],
        }
        for side, model in models.items()
    }


def choose(
    study: Study,
    teacher: "PreTrainedModel",
    blocks: list[list[Candidate]],
    cells: "list[list[Cell]]",
    lengths: list[int],
) -> Combination:
    """The best combination whose student, built and measured, is within the budget.

    Candidates are measured here side by side with the teacher, as what was measured in trials that ran at the same
    time as others cannot be compared.

    Raises:
        PhaseError: Nothing fits.
    """
    from nni_bertnas.training.student import new_student

    budget = study.supernet.budget
    empty = new_student(study, teacher, [{"space": "sequential", "depth": 0, "architecture": {}} for _ in blocks])
    calls: dict[str, Call] = {"teacher": model_call(teacher, lengths), "base": model_call(empty, lengths)}
    for block, block_cells in enumerate(cells):
        for index, cell in enumerate(block_cells):
            calls[f"{block}.{index}"] = cell_call(cell.body, study.student.hidden_size, lengths)
    latency_ms = measure_latency_ms(calls, lengths, threads=study.supernet.latency_threads)
    options = [
        [
            Option(
                score=candidate["score"],
                num_params=count_params(cells[block][index].body),
                latency_ms=latency_ms[f"{block}.{index}"],
            )
            for index, candidate in enumerate(candidates)
        ]
        for block, candidates in enumerate(blocks)
    ]
    base = Option(score=0.0, num_params=count_params(empty), latency_ms=latency_ms["base"])
    limits = [budget.max_latency_ms, budget.min_speedup and latency_ms["teacher"] / budget.min_speedup]
    limit_ms = min((limit for limit in limits if limit), default=None)
    fitting = combinations(options, base, max_params=budget.max_params, max_latency_ms=limit_ms)
    correction = 1.0  # measured over estimated, learnt from the combinations that turned out too slow
    for combination in fitting:
        if limit_ms is not None and combination.latency_ms * correction > limit_ms:
            continue
        picked = [blocks[block][index] for block, index in enumerate(combination.choice)]
        student = new_student(study, teacher, picked)
        pair = {"teacher": calls["teacher"], "student": model_call(student, lengths)}
        measured = measure_latency_ms(pair, lengths, threads=study.supernet.latency_threads)
        if (budget.max_latency_ms is None or measured["student"] <= budget.max_latency_ms) and (
            budget.min_speedup is None or measured["teacher"] / measured["student"] >= budget.min_speedup
        ):
            return combination
        correction = max(correction, measured["student"] / combination.latency_ms)
        _log.info("%s takes %.2f ms, %.2f estimated", combination.choice, measured["student"], combination.latency_ms)
    everything = combinations(options, base)
    raise PhaseError(
        f"no combination fits supernet.budget: the smallest student has {min(one.num_params for one in everything):,} "
        f"parameters, the fastest takes {min(one.latency_ms for one in everything):.2f} ms (teacher "
        f"{latency_ms['teacher']:.2f} ms); loosen the budget, lower student.hidden_size, or search smaller cell.depths"
    )
