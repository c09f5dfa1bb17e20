"""What comes before and around the training: building and reading the store, its size in memory, the start of a trial.

    python benchmarks/search_cost.py --glue GLUE_FOLDER [--parts search store start memory] [--threads 2]

On SST-2 with MiniLM as the teacher. Everything goes to benchmarks/results/search_cost.json, part by part;
search_cost.png is a plot; the last line is one JSON object.

- `search`: on all rows, cell and block as `bertnas` runs them through NNI with the default settings, against one epoch
  of fine-tuning, an eighth of whose batches are taken before the search and an eighth after; then once more with a slow
  setting, every cell trained for an epoch of all rows, whose best block scores are compared (only the greatest depth,
  which has the best in all that were seen). All seeds have the first one's teacher. The other parts take a part of the
  rows and a teacher fine-tuned for a moment only, as its answers do not matter there.
- `store`: building against one plain inference pass over the same rows, in turns.
- `start`: how long a trial with one cell and 64 rows takes from NNI's start to its end, which is an upper bound of its
  first step, with and without the process that has loaded the libraries; beside it what the plain imports take.
- `memory`: stores of up to 400,000 rows, made by repeating real ones, each built and read once in a process of its own
  whose greatest resident size is taken.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from common import RESULTS, Results, change, finish, glue_study, options_parser, start, teacher_step

from nni_bertnas.config import StudentSettings, Study, to_dict, to_yaml
from nni_bertnas.data.batches import Batch, make_loader, model_inputs
from nni_bertnas.data.samplers import LengthBatches
from nni_bertnas.data.tokens import tokenize
from nni_bertnas.launch.experiments import make_config, run_experiment
from nni_bertnas.launch.trial_server import server
from nni_bertnas.stages.run import Run
from nni_bertnas.stages.stage import ensure, find, load
from nni_bertnas.store.reader import FeatureDataset, FeatureStore
from nni_bertnas.store.writer import BATCH_SIZE, SplitWriter

IMPORTS = "import nni, torch, pytorch_lightning"
PARTS = ("search", "store", "start", "memory")
SIZES = (25_000, 50_000, 100_000, 400_000)


def make_study(options: argparse.Namespace) -> Study:
    """A part of SST-2 and a teacher of one epoch."""
    study = glue_study("sst2", options.glue)
    return change(study, name="steps", task={"max_train_rows": options.rows}, teacher={"epochs": 1})


def measure_search(study: Study, seed: int, teacher: Path | None) -> dict[str, Any]:
    """Of all rows: the default search between two parts of a teacher's epoch, then the slow search."""
    model = {} if teacher is None else {"model": str(teacher)}
    task = {"max_train_rows": None}
    study = change(study, name=f"search-{seed}", seed=seed, task=task, teacher=model, student=StudentSettings())
    run = Run(study)
    result: dict[str, Any] = {"teacher": ensure(run, "teacher"), "store_seconds": ensure(run, "features")["seconds"]}
    data = tokenize(run.load_teacher()[1], run.data.splits["train"], study.task.max_length)
    batches = list(make_loader(data, study.teacher.batch_size, shuffle=True))
    step, part = teacher_step(run), len(batches) // 8
    seconds = [take(step, batches[:part])]
    result["default"] = run_phases(study)
    seconds.append(take(step, batches[part : 2 * part]))
    epoch = sum(seconds) / (2 * part) * len(batches)
    result["epoch"] = {"steps": len(batches), "seconds": epoch, "seconds_of_parts": seconds, "steps_of_a_part": part}
    result["search_over_epoch"] = sum(result["default"]["seconds"].values()) / epoch
    result["search_and_store_over_epoch"] = result["search_over_epoch"] + result["store_seconds"] / epoch
    print(json.dumps(result), flush=True)
    slow = {"max_rows": None, "epochs": 1, "depths": [max(study.cell.depths)]}
    result["slow"] = run_phases(change(study, cell=slow, block={"candidates": 1}))
    result["default_over_slow_score"] = [
        fast[0] / best[0]
        for fast, best in zip(result["default"]["block_scores"], result["slow"]["block_scores"], strict=True)
    ]
    return result


def take(step: Callable[[Batch], None], batches: list[Batch]) -> float:
    """Seconds of a step on each batch."""
    start = time.perf_counter()
    for batch in batches:
        step(batch)
    return time.perf_counter() - start


def run_phases(study: Study) -> dict[str, Any]:
    """Cell and block from nothing, each with its seconds; the scores of every block's candidates, best first."""
    run = Run(study)
    path = run.root / "search.yml"
    path.write_text(to_yaml(study))
    seconds = {}
    for phase in ("cell", "block"):
        shutil.rmtree(run.folder(phase), ignore_errors=True)
        begin = time.perf_counter()
        subprocess.run([Path(sys.executable).with_name("bertnas"), phase, path], check=True)
        seconds[phase] = time.perf_counter() - begin
    results = [find(run, "block", unit) for unit in load("block").units(run)]
    found = [result["candidates"] for result in results if result is not None]
    return {
        "seconds": seconds,
        "settings": {"cell": to_dict(study.cell), "block": to_dict(study.block)},
        "block_scores": [[one["score"] for one in candidates] for candidates in found],
        "architectures": [[one["architecture"] for one in candidates] for candidates in found],
    }


def measure_store(run: Run) -> dict[str, Any]:
    """Building over plain inference, five rounds."""
    teacher, tokenizer = run.load_teacher()
    data = tokenize(tokenizer, run.data.splits["train"], run.study.task.max_length)
    folder = run.root / "store"
    seconds: dict[str, list[float]] = {"plain": [], "build": []}
    for _ in range(5):
        begin = time.perf_counter()
        with torch.inference_mode():
            for rows in LengthBatches(data.lengths, BATCH_SIZE, shuffle=False):
                teacher(**model_inputs(teacher, data.batch(rows)))
        seconds["plain"].append(time.perf_counter() - begin)
        shutil.rmtree(folder, ignore_errors=True)
        begin = time.perf_counter()
        SplitWriter(folder, teacher, data, run.edges).write()
        seconds["build"].append(time.perf_counter() - begin)
    size = sum(file.stat().st_size for file in folder.iterdir())
    shutil.rmtree(folder)
    return {
        "rows": len(data),
        "tokens": int(data.offsets[-1]),
        "seconds": seconds,
        "build_over_plain": median(seconds["build"]) / median(seconds["plain"]),
        "bytes_per_token": size / int(data.offsets[-1]),
    }


def measure_start(run: Run) -> dict[str, Any]:
    """Lengths of trials that do next to nothing, in seconds."""
    result: dict[str, Any] = {}
    imports = []
    for _ in range(3):
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-W", "ignore", "-c", IMPORTS], check=True)
        imports.append(time.perf_counter() - begin)
    result["plain_imports"] = median(imports)
    cell = {"strategy": "random", "options": {"samples": 1}, "epochs": 1, "max_rows": 64, "depths": [1]}
    one, stage = Run(change(run.study, cell=cell, nni={"concurrency": 1})), load("cell")
    path = run.root / "start.yml"
    path.write_text(to_yaml(one.study))
    for name, quick in (("alone", False), ("forked", True)):
        shutil.rmtree(run.folder("cell"), ignore_errors=True)
        found: dict[str, float] = {}

        def show(jobs: list[Any], address: str, found: dict[str, float] = found) -> None:
            found |= {job.trialJobId: (job.endTime - job.startTime) / 1000 for job in jobs if job.endTime}

        with server() as address:
            run_experiment(make_config(one, path, stage, stage.units(one), address if quick else None), 8280, show)
        result[name] = sorted(found.values())
    result["forked_over_imports"] = median(result["forked"]) / result["plain_imports"]
    return result


def build_and_read(run: Run, rows: int) -> dict[str, Any]:
    """A store of so many rows, in this process."""
    teacher, tokenizer = run.load_teacher()
    train = run.data.splits["train"]
    some = train.take([number % len(train) for number in range(rows)])
    begin = time.perf_counter()
    data = tokenize(tokenizer, some, run.study.task.max_length)
    folder = run.root / f"store-{rows}"
    shutil.rmtree(folder, ignore_errors=True)
    SplitWriter(folder, teacher, data, run.edges).write()
    built = time.perf_counter()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    store = FeatureStore(folder)
    for batch in make_loader(FeatureDataset(store, store.edges), 64, shuffle=True):
        assert len(batch.hidden) == len(store.edges)
    result = {
        "rows": rows,
        "tokens": int(data.offsets[-1]),
        "bytes": sum(file.stat().st_size for file in folder.iterdir()),
        "build_seconds": built - begin,
        "read_seconds": time.perf_counter() - built,
        "building_mib": before / 1024,
        "resident_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    shutil.rmtree(folder)
    return result


def measure_memory(options: argparse.Namespace) -> list[dict[str, Any]]:
    """All sizes, each in a process of its own."""
    found = []
    for rows in options.sizes:
        command = [sys.executable, __file__, "--glue", options.glue, "--threads", str(options.threads)]
        done = subprocess.run([*command, "--build", str(rows)], check=True, capture_output=True, text=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
        print(found[-1], flush=True)
    return found


def plot(sizes: list[dict[str, Any]], path: Path) -> None:
    """Seconds and resident memory over rows."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.6), layout="constrained")
    for place, (name, label) in enumerate((("build_seconds", "seconds to build"), ("resident_mib", "resident, MiB"))):
        axes = figure.add_subplot(1, 2, place + 1)
        axes.plot([one["rows"] for one in sizes], [one[name] for one in sizes], "o-")
        axes.set_xlabel("rows")
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measure what is asked for, write, print."""
    parser = options_parser(__doc__, seeds=(0, 1))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES)
    parser.add_argument("--rows", type=int, default=3000)
    parser.add_argument("--build", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, default=RESULTS / "search_cost.json")
    options = parser.parse_args()
    start(options.threads)
    study = make_study(options)
    run = Run(study)
    ensure(run, "features")
    if options.build:
        finish(build_and_read(run, options.build))
        return
    results = Results(options.output)
    for part in options.parts:
        if part == "search":
            found: dict[str, Any] = {}
            teacher: Path | None = None
            for seed in options.seeds:
                found[str(seed)] = measure_search(study, seed, teacher)
                results[part] = found
                teacher = teacher or (Path(study.runs_dir) / f"search-{seed}" / "teacher").resolve()
        elif part == "memory":
            results[part] = measure_memory(options)
            plot(results.data[part], options.output.with_suffix(".png"))
        else:
            results[part] = {"store": measure_store, "start": measure_start}[part](run)
    finish(results.data)


if __name__ == "__main__":
    main()
