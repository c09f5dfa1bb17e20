"""Where the time of a training step goes: the teacher's, the student's, a cell's.

    python benchmarks/steps.py --glue GLUE_FOLDER [--rows 3000] [--repeats 60] [--threads 2]

On SST-2 with MiniLM as the teacher, fine-tuned for a moment only, as its answers do not matter here. What is compared
is measured in turns, batch by batch, in one process; figures are medians. A fetch is a batch's inputs and targets out
of the store, files in the page cache, against the teacher running for them. A search's step is that of a whole search
through NNI, divided by its steps: one path (`fit_cells`) and DARTS with all eleven operations; its share of waiting is
for batches, which a thread reads ahead. The machine's peak is that of a product of two square matrices of single
precision. Everything goes to benchmarks/results/steps.json; the last line is one JSON object.
"""

import argparse
import dataclasses
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from nni_bertnas import quiet_libraries
from nni_bertnas.artifacts import RunDirectory
from nni_bertnas.config import Study, load_study
from nni_bertnas.data.batches import ReadAhead, make_loader
from nni_bertnas.search.strategies import STRATEGIES, Search
from nni_bertnas.stages.cell import make_search
from nni_bertnas.store.reader import FeatureDataset, ensure_features, open_features
from nni_bertnas.training.losses import masked_mse
from nni_bertnas.training.metrics import label_loss, model_inputs
from nni_bertnas.training.student import StudentDistillation, new_student
from nni_bertnas.training.teacher import ensure_teacher, load_teacher
from nni_bertnas.training.trainer import pl
from search_space.cells import build_cell

HERE = Path(__file__).parent
CELLS = ("convolution_3", "attention_4", "attention_4")  # those that the demo chose
CHOSEN = "student, rows of the embedding"
TEACHERS = {"teacher": {}, "teacher, AdamW not fused": {"fused": False}, "teacher, bfloat16": {"half": True}}
STUDENTS = {
    "student, dense embedding": {"sparse": False},
    CHOSEN: {},
    "student, frozen embedding": {"frozen": True},
    "student, bfloat16": {"half": True},
    "student, compiled": {"compiled": True},
}
CELL_STEPS = {"cell": {}, "cell, bfloat16": {"half": True}, "cell, compiled": {"compiled": True}}


def make_study(options: argparse.Namespace) -> Study:
    """A part of SST-2, a teacher of one epoch, width 128."""
    study = load_study(HERE.parent / "experiment_configs" / "studies" / "glue" / "sst2.yml")
    return dataclasses.replace(
        study,
        name="steps",
        task=dataclasses.replace(study.task, data_dir=options.glue, max_train_rows=options.rows),
        teacher=dataclasses.replace(study.teacher, epochs=1),
        student=dataclasses.replace(study.student, hidden_size=128),
    )


def teacher_step(study: Study, *, fused: bool = True, half: bool = False) -> Callable[[dict[str, Any]], None]:
    """One step of fine-tuning."""
    model = load_teacher(study)[0].requires_grad_(True).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=fused)

    def step(batch: dict[str, Any]) -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = label_loss(model(**model_inputs(model, batch)).logits, batch["labels"])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def student_step(
    study: Study, *, sparse: bool = True, frozen: bool = False, half: bool = False, compiled: bool = False
) -> Callable[[dict[str, Any]], None]:
    """One step of the supernet phase; in mixed precision, or compiled, where asked for."""
    study = dataclasses.replace(
        study,
        student=dataclasses.replace(study.student, freeze_embeddings=frozen),
        supernet=dataclasses.replace(study.supernet, sparse_embeddings=sparse),
    )
    store = open_features(study, "train")
    names = [{"space": "layers", "depth": 1, "architecture": {"layer_0": name}} for name in CELLS]
    cells = [build_cell(**one, teacher_size=store.hidden_size, hidden_size=128) for one in names]
    student = new_student(study, load_teacher(study)[0], names)
    student.load_cells(cells)
    student.embeddings.requires_grad_(not frozen)
    module = StudentDistillation(student, cells, store, study, 10_000).train()
    module.log_dict = lambda *_, **__: None  # there is no trainer to take them
    optimizer = module.configure_optimizers()["optimizer"]
    if compiled:
        student.compile(dynamic=True)

    def step(batch: dict[str, Any]) -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = module.training_step(batch, 0)
        loss.backward()
        module.configure_gradient_clipping(optimizer, 1.0)
        optimizer.step()

    return step


def cell_step(study: Study, *, half: bool = False, compiled: bool = False) -> Callable[[dict[str, Any]], None]:
    """One step of a cell of depth 2, without Lightning and NNI around it."""
    store = open_features(study, "train")
    architecture = {"layer_0": "attention_4", "layer_1": "convolution_3"}
    cell = build_cell("layers", architecture, 2, store.hidden_size, study.student.hidden_size).train()
    optimizer = torch.optim.AdamW(cell.parameters(), lr=4e-3, fused=True)
    if compiled:
        cell.compile(dynamic=True)

    def step(batch: dict[str, Any]) -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = masked_mse(cell(batch["hidden"][0], batch["mask"]), batch["hidden"][1], batch["mask"])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(cell.parameters(), 1.0)
        optimizer.step()

    return step


def in_turns(calls: Mapping[str, Callable[[Any], Any]], batches: list[Any]) -> dict[str, float]:
    """Median seconds of each call, taken in turns over the batches."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number, batch in enumerate(batches):
        for name, call in calls.items():
            start = time.perf_counter()
            call(batch)
            if number >= 5:
                seconds[name].append(time.perf_counter() - start)
    return {name: median(values) for name, values in seconds.items()}


def profile(step: Callable[[Any], None], batches: list[Any]) -> dict[str, float]:
    """Share of the operators that take longest."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
        for batch in batches:
            step(batch)
    own = {event.key: event.self_cpu_time_total for event in found.key_averages()}
    total = sum(own.values())
    return {name: own[name] / total for name in sorted(own, key=own.__getitem__, reverse=True)[:12]}


def peak_flops(size: int = 1024) -> float:
    """Of the best of ten products of square matrices."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    times = []
    for _ in range(10):
        start = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - start)
    return 2 * size**3 / min(times)


def padding(lengths: np.ndarray, batches: Iterable[Any]) -> float:
    """Share of the positions of all batches that hold no word piece."""
    return 1 - lengths.sum() / sum(len(rows) * lengths[rows].max() for rows in batches)


def search_steps(run: Callable[[Search], Any], search: Search) -> dict[str, float]:
    """Seconds of one search, its steps, and the share of the time that it waited for batches."""
    inner, spent = ReadAhead.__iter__, []

    def timed(self: ReadAhead) -> Iterator[Any]:
        batches = inner(self)
        while True:
            start = time.perf_counter()
            batch = next(batches, None)
            spent.append(time.perf_counter() - start)
            if batch is None:
                return
            yield batch

    ReadAhead.__iter__ = timed
    try:
        start = time.perf_counter()
        run(search)
        seconds = time.perf_counter() - start
    finally:
        ReadAhead.__iter__ = inner
    return {"step_ms": 1e3 * seconds / len(spent), "fetches": len(spent), "waiting_share": sum(spent) / seconds}


def one_path(search: Search) -> None:
    """Train one architecture for an epoch."""
    evaluator = search.make_evaluator()
    architecture = {"layer_0": "attention_4", "layer_1": "convolution_3"}
    evaluator.fit_cells([search.space.build(architecture)], 1)


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--glue", required=True, help="folder that holds SST-2/")
    parser.add_argument("--rows", type=int, default=3000)
    parser.add_argument("--repeats", type=int, default=60)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=HERE / "results" / "steps.json")
    options = parser.parse_args()
    quiet_libraries()
    torch.set_num_threads(options.threads)
    study = make_study(options)
    ensure_teacher(study)
    edges = ensure_features(study)["edges"]
    store = open_features(study, "train")
    pl.seed_everything(0, verbose=False)

    loader = make_loader(FeatureDataset(store, edges[1:], tokens=True), 32, shuffle=True)
    batches = list(loader)[: options.repeats]
    calls = {name: teacher_step(study, **how) for name, how in TEACHERS.items()}
    calls |= {name: student_step(study, **how) for name, how in STUDENTS.items()}
    calls |= {name: cell_step(study, **how) for name, how in CELL_STEPS.items()}
    seconds = in_turns(calls, batches)
    batch = min(batches, key=lambda one: abs(one["mask"].numel() - median(b["mask"].numel() for b in batches)))
    with FlopCounterMode(display=False) as counter:
        calls[CHOSEN](batch)
    chosen = seconds[CHOSEN]
    peak = peak_flops()

    generator = np.random.default_rng(0)
    rows = [np.sort(generator.permutation(len(store))[:16]) for _ in range(options.repeats)]
    pair = FeatureDataset(store, edges[1:3])
    teacher = load_teacher(study)[0]
    store.__dict__["_teacher"] = teacher
    fetch = in_turns(
        {"store": lambda some: pair.__getitems__(some), "teacher": lambda some: store._run_teacher(edges[1:3], some)},
        rows,
    )

    cell = {"epochs": 1, "space": "layers", "max_rows": None}
    searches = {}
    ways = (("one path", "random", 1), ("one path", "random", options.threads), ("darts", "darts", options.threads))
    for name, strategy, threads in ways:
        torch.set_num_threads(threads)  # a trial of the default study has one, as there is another beside it
        one = dataclasses.replace(
            study, cell=dataclasses.replace(study.cell, strategy=strategy, candidate_epochs=0, **cell)
        )
        search = make_search(one, 1, 2, edges)
        found = search_steps(one_path if strategy == "random" else STRATEGIES[strategy], search)
        live_ms = 1e3 * (fetch["teacher"] - fetch["store"])
        share = live_ms / (found["step_ms"] + live_ms)
        searches[f"{name}, {threads} thread(s)"] = {**found, "share_of_a_live_teacher": share}

    result = {
        "threads": options.threads,
        "rows": options.rows,
        "batch_32_ms": {name: 1e3 * value for name, value in seconds.items()},
        "teacher_over_student": {name: seconds["teacher"] / seconds[name] for name in STUDENTS},
        "batch_16_fetch_ms": {name: 1e3 * value for name, value in fetch.items()},
        "teacher_over_store": fetch["teacher"] / fetch["store"],
        "search": searches,
        "padding_share": {
            "rows of like length together": padding(store.lengths, loader.batch_sampler),
            "random order": padding(store.lengths, np.array_split(generator.permutation(len(store)), len(loader))),
        },
        "peak_gflops": peak / 1e9,
        "student_step_gflop": counter.get_total_flops() / 1e9,
        "student_share_of_peak": counter.get_total_flops() / chosen / peak,
        "profile": {name: profile(call, batches[:20]) for name, call in calls.items() if "compiled" not in name},
    }
    options.output.write_text(json.dumps(result, indent=1))
    for name, shares in result["profile"].items():
        print(name, {operator: f"{share:.0%}" for operator, share in shares.items() if share > 0.02})
    print(RunDirectory(study).root)
    print(json.dumps({name: value for name, value in result.items() if name != "profile"}))


if __name__ == "__main__":
    main()
