"""Phase 3, supernet: choose one candidate per block, chain them, train the student end to end, save it."""

import logging
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from nni_bertnas.artifacts import RunDirectory, atomic_folder, fingerprint, read_result, write_result
from nni_bertnas.augment import augment_fingerprint, open_augmented
from nni_bertnas.candidates import Candidate, load_cell
from nni_bertnas.config import Study, study_to_dict
from nni_bertnas.cost import Call, count_flops, count_params, layers_call, measure_latency_ms, model_call
from nni_bertnas.data import load_task, make_loader, make_stream, tokenize
from nni_bertnas.errors import PhaseError
from nni_bertnas.features import FeatureDataset, open_features, study_edges
from nni_bertnas.selection import Combination, Option, combinations
from nni_bertnas.tasks import task_spec
from nni_bertnas.tracking import Tracker
from search_space.student import operations_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from search_space.student import Cell

_log = logging.getLogger(__name__)
NAMES = ("seed",)
OPTIMIZE = "maximize"
STUDENT = "student"  # folder of the saved model inside the result
_LATENCY_ROWS = 60  # real rows whose lengths a latency is measured at,
_LATENCY_REPEATS = 3  # each so often


def units(study: Study, num_blocks: int) -> list[dict[str, int]]:
    """The parameters of every unit of work of this phase."""
    return [{"seed": study.seed}]


def find(study: Study, seed: int) -> dict[str, Any] | None:
    """The finished result of one seed, if it still fits the study and its blocks."""
    return read_result(RunDirectory(study).supernet(seed), _fingerprint(study, seed, _rankings(study)))


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


def run(study: Study, seed: int, tracker: Tracker | None = None) -> dict[str, Any]:
    """Train one student from the blocks' rankings; a finished result that still fits is reused.

    Args:
        study: The study.
        seed: Of the end-to-end training; several seeds give several students.
        tracker: Takes the metrics.

    Returns:
        The result: fingerprint, chosen architecture, teacher and student with score, parameters, FLOPs and latency.

    Raises:
        PhaseError: The block phase has not been run, or nothing fits the budget.
    """
    tracker = tracker or Tracker()
    result = find(study, seed)
    if result is None:
        result = _train(study, seed, tracker)
    metric = task_spec(study.task).metric
    student = result["student"]
    tracker.final(
        {
            "default": student[f"dev_{metric}"],
            **{name: value for name, value in student.items() if name.endswith(f"_{metric}")},
            "num_params": student["num_params"],
            "latency_ms": student["latency_ms"],
            "speedup": result["speedup"],
        }
    )
    return result


def _train(study: Study, seed: int, tracker: Tracker) -> dict[str, Any]:
    from nni_bertnas.chain import StudentDistillation, check_chain, new_student
    from nni_bertnas.scoring import evaluate_classifier
    from nni_bertnas.teacher import load_teacher
    from nni_bertnas.training import EpochReport, KeepBest, fit, pl

    start = time.perf_counter()
    pl.seed_everything(seed, verbose=False)
    config, spec = study.supernet, task_spec(study.task)
    metric = f"dev_{spec.metric}"
    teacher, tokenizer = load_teacher(study)
    train, dev = open_features(study, "train"), open_features(study, "dev")
    lengths = dev.lengths[:_LATENCY_ROWS].tolist() * _LATENCY_REPEATS
    run_directory = RunDirectory(study)
    rankings = _rankings(study)
    blocks: list[list[Candidate]] = [ranking["candidates"] for ranking in rankings]
    cells = [
        [load_cell(run_directory.block(block), one, train.hidden_size, study.student.hidden_size) for one in candidates]
        for block, candidates in enumerate(blocks)
    ]
    chosen = choose(study, teacher, blocks, cells, lengths)
    candidates = [candidates[index] for candidates, index in zip(blocks, chosen.choice, strict=True)]
    picked = [block_cells[index] for block_cells, index in zip(cells, chosen.choice, strict=True)]
    student = new_student(study, teacher, [operations_of(one["architecture"]) for one in candidates])
    student.load_cells(picked)
    dev_loader = make_loader(FeatureDataset(dev, (), tokens=True), 128, shuffle=False)
    difference = check_chain(student, picked, next(iter(dev_loader)))

    edges = train.edges[1:] if study.distill.hidden_weight else ()
    parts = [FeatureDataset(train, edges, tokens=True)]
    if study.augment.copies:
        store, rows = open_augmented(study)
        parts.append(FeatureDataset(store, (), tokens=True, rows=rows))
    loader = make_stream(parts, config.batch_size, seed=seed, epoch_rows=config.epoch_rows)
    module = StudentDistillation(student, picked, train, study, len(loader) * config.epochs).train()
    best = KeepBest(metric, student)
    report = EpochReport(lambda metrics: tracker.epoch(metrics, metric))
    fit(module, loader, dev_loader, config.epochs, [best, report])
    student.eval()

    data = load_task(study.task)
    loaders = {"dev": dev_loader}
    for split in data.final_splits:
        tokens = tokenize(tokenizer, data.splits[split], study.task.max_length)
        loaders[split] = make_loader(tokens, 128, shuffle=False)
    calls = {"teacher": model_call(teacher, lengths), "student": model_call(student, lengths)}
    latency_ms = measure_latency_ms(calls, lengths, threads=config.latency_threads)
    sides = {
        name: {
            **{
                f"{split}_{name}": value
                for split, split_loader in loaders.items()
                for name, value in evaluate_classifier(model, split_loader, spec).items()
            },
            "num_params": count_params(model),
            "num_flops": count_flops(calls[name], sorted(lengths)[len(lengths) // 2]),
            "latency_ms": latency_ms[name],
        }
        for name, model in (("teacher", teacher), ("student", student))
    }
    result = {
        "fingerprint": _fingerprint(study, seed, rankings),
        "seed": seed,
        "architecture": [one["architecture"] for one in candidates],
        "block_scores": [one["score"] for one in candidates],
        "selection": asdict(chosen),
        "chain_difference": difference,
        "epoch_of_best": best.epoch,
        **sides,
        "speedup": latency_ms["teacher"] / latency_ms["student"],
        "latency_threads": config.latency_threads,
        "seconds": time.perf_counter() - start,
    }
    with atomic_folder(run_directory.supernet(seed)) as folder:
        student.save_pretrained(folder / STUDENT)
        tokenizer.save_pretrained(folder / STUDENT)
        write_result(folder, study, result)
    return result


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
    from nni_bertnas.chain import new_student

    budget = study.supernet.budget
    empty = new_student(study, teacher, [[] for _ in blocks])
    calls: dict[str, Call] = {"teacher": model_call(teacher, lengths), "base": model_call(empty, lengths)}
    for block, block_cells in enumerate(cells):
        for index, cell in enumerate(block_cells):
            calls[f"{block}.{index}"] = layers_call(cell, study.student.hidden_size, lengths)
    latency_ms = measure_latency_ms(calls, lengths, threads=study.supernet.latency_threads)
    options = [
        [
            Option(
                score=candidate["score"],
                num_params=count_params(cells[block][index].layers),
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
        student = new_student(study, teacher, [operations_of(one["architecture"]) for one in picked])
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
