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
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from common import RESULTS, Results, change, finish, glue_study, options_parser, start, teacher_step
from torch.utils.flop_counter import FlopCounterMode

from nni_bertnas.config import Study
from nni_bertnas.data.batches import Batch, ReadAhead, make_loader, model_inputs, token_batch
from nni_bertnas.data.tasks import task_note
from nni_bertnas.search.search import Search
from nni_bertnas.search.strategies import STRATEGIES
from nni_bertnas.stages.cells import make_search
from nni_bertnas.stages.run import Run
from nni_bertnas.stages.stage import ensure
from nni_bertnas.store.reader import FeatureDataset
from nni_bertnas.student.build import new_student
from nni_bertnas.student.candidates import Candidate
from nni_bertnas.student.start import Start
from nni_bertnas.training.losses import masked_mse
from nni_bertnas.training.student import StudentDistillation
from nni_bertnas.training.trainer import pl
from search_space.cells import build_cell

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
    study = glue_study("sst2", options.glue)
    task, teacher = {"max_train_rows": options.rows}, {"epochs": 1}
    return change(study, name="steps", task=task, teacher=teacher, student={"hidden_size": 128})


def student_step(
    run: Run, *, sparse: bool = True, frozen: bool = False, half: bool = False, compiled: bool = False
) -> Callable[[Batch], None]:
    """One step of the supernet phase; in mixed precision, or compiled, where asked for."""
    study = change(run.study, student={"freeze_embeddings": frozen}, supernet={"sparse_embeddings": sparse})
    store = run.train
    shapes = [Candidate(space="layers", depth=1, architecture={"layer_0": name}) for name in CELLS]
    cells = [one.fresh(store.hidden_size, 128).trained for one in shapes]
    student = new_student(
        run.shape, Start(teacher=run.load_teacher()[0], spec=run.task, note=task_note(study.task)), shapes
    )
    student.load_cells(cells)
    student.embeddings.requires_grad_(not frozen)
    module = StudentDistillation(
        student,
        cells,
        [store.variance(edge) for edge in store.edges[1:]],
        torch.nn.Linear(128, store.hidden_size),
        distill=study.distill,
        settings=study.supernet,
        spec=run.task,
        steps=10_000,
        freeze_embeddings=frozen,
    ).train()
    module.log_dict = lambda *_, **__: None  # there is no trainer to take them
    optimizer = module.configure_optimizers()["optimizer"]
    if compiled:
        student.compile(dynamic=True)

    def step(batch: Batch) -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = module.training_step(batch, 0)
        assert loss is not None
        loss.backward()
        module.configure_gradient_clipping(optimizer, 1.0)
        optimizer.step()

    return step


def cell_step(run: Run, *, half: bool = False, compiled: bool = False) -> Callable[[Batch], None]:
    """One step of a cell of depth 2, without Lightning and NNI around it."""
    architecture = {"layer_0": "attention_4", "layer_1": "convolution_3"}
    cell = build_cell("layers", architecture, 2, run.train.hidden_size, run.study.student.hidden_size).train()
    optimizer = torch.optim.AdamW(cell.parameters(), lr=4e-3, fused=True)
    if compiled:
        cell.compile(dynamic=True)

    def step(batch: Batch) -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = masked_mse(cell(batch.hidden[0], batch.mask), batch.hidden[1], batch.mask)
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


def search_steps(search: Callable[[Search], Any], on: Search) -> dict[str, float]:
    """Seconds of one search, its steps, and the share of the time that it waited for batches."""
    inner, spent = ReadAhead.__iter__, list[float]()

    def timed(self: ReadAhead) -> Iterator[Any]:
        batches = inner(self)
        while True:
            begin = time.perf_counter()
            batch = next(batches, None)
            spent.append(time.perf_counter() - begin)
            if batch is None:
                return
            yield batch

    with patch.object(ReadAhead, "__iter__", timed):
        begin = time.perf_counter()
        search(on)
        seconds = time.perf_counter() - begin
    return {"step_ms": 1e3 * seconds / len(spent), "fetches": len(spent), "waiting_share": sum(spent) / seconds}


def one_path(search: Search) -> None:
    """Train one architecture for an epoch."""
    search.trainer.fit_cells(search.build({"layer_0": "attention_4", "layer_1": "convolution_3"}), 1)


def fetches(run: Run, repeats: int) -> dict[str, float]:
    """Seconds of a batch's inputs and targets, out of the store and from the teacher running for them."""
    store, edges = run.train, run.edges[1:3]
    teacher, pair = run.load_teacher()[0], FeatureDataset(store, edges)

    @torch.no_grad()
    def live(rows: np.ndarray) -> list[torch.Tensor]:
        inputs = model_inputs(teacher, token_batch(store, rows, store.index.pad_token_id))
        states = teacher(**inputs, output_hidden_states=True).hidden_states
        return [states[edge].float() for edge in edges]

    generator = np.random.default_rng(0)
    rows = [np.sort(generator.permutation(len(store))[:16]) for _ in range(repeats)]
    return in_turns({"store": pair.batch, "teacher": live}, rows)


def measure_searches(study: Study, threads: int, live_ms: float) -> dict[str, dict[str, float]]:
    """Steps of whole searches through NNI, and what a live teacher's share of them would be."""
    found = {}
    ways = (("one path", "random", 1), ("one path", "random", threads), ("darts", "darts", threads))
    for name, strategy, number in ways:
        torch.set_num_threads(number)  # a trial of the default study has one, as there is another beside it
        options = {"candidate_epochs": 0} if strategy == "darts" else {}
        cell = {"epochs": 1, "space": "layers", "max_rows": None, "strategy": strategy, "options": options}
        search = make_search(Run(change(study, cell=cell)), 1, 2)
        one = search_steps(one_path if strategy == "random" else STRATEGIES[strategy].load(), search)
        share = live_ms / (one["step_ms"] + live_ms)
        found[f"{name}, {number} thread(s)"] = {**one, "share_of_a_live_teacher": share}
    return found


def main() -> None:
    """Measure, write, print."""
    parser = options_parser(__doc__)
    parser.add_argument("--rows", type=int, default=3000)
    parser.add_argument("--repeats", type=int, default=60)
    parser.add_argument("--output", type=Path, default=RESULTS / "steps.json")
    options = parser.parse_args()
    start(options.threads)
    run = Run(make_study(options))
    ensure(run, "features")
    store = run.train
    pl.seed_everything(0, verbose=False)
    loader = make_loader(FeatureDataset(store, run.edges[1:], tokens=True), 32, shuffle=True)
    batches = list(loader)[: options.repeats]
    calls: dict[str, Callable[[Batch], None]] = {name: teacher_step(run, **how) for name, how in TEACHERS.items()}
    calls |= {name: student_step(run, **how) for name, how in STUDENTS.items()}
    calls |= {name: cell_step(run, **how) for name, how in CELL_STEPS.items()}
    seconds = in_turns(calls, batches)
    middle = median(one.mask.numel() for one in batches)
    batch = min(batches, key=lambda one: abs(one.mask.numel() - middle))
    with FlopCounterMode(display=False) as counter:
        calls[CHOSEN](batch)
    peak, fetch = peak_flops(), fetches(run, options.repeats)
    shuffled = np.random.default_rng(0).permutation(len(store))
    results = Results(options.output)
    results.data = {
        "threads": options.threads,
        "rows": options.rows,
        "batch_32_ms": {name: 1e3 * value for name, value in seconds.items()},
        "teacher_over_student": {name: seconds["teacher"] / seconds[name] for name in STUDENTS},
        "batch_16_fetch_ms": {name: 1e3 * value for name, value in fetch.items()},
        "teacher_over_store": fetch["teacher"] / fetch["store"],
        "search": measure_searches(run.study, options.threads, 1e3 * (fetch["teacher"] - fetch["store"])),
        "padding_share": {
            "rows of like length together": padding(store.lengths, loader.batch_sampler),
            "random order": padding(store.lengths, np.array_split(shuffled, len(loader))),
        },
        "peak_gflops": peak / 1e9,
        "student_step_gflop": counter.get_total_flops() / 1e9,
        "student_share_of_peak": counter.get_total_flops() / seconds[CHOSEN] / peak,
        "profile": {name: profile(call, batches[:20]) for name, call in calls.items() if "compiled" not in name},
    }
    results.write()
    for name, shares in results.data["profile"].items():
        print(name, {operator: f"{share:.0%}" for operator, share in shares.items() if share > 0.02})
    finish({name: value for name, value in results.data.items() if name != "profile"})


if __name__ == "__main__":
    main()
