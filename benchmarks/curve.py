"""Students beside all that a user could take instead: score, latency and size of every system in `peers`.

    python benchmarks/curve.py --glue GLUE_FOLDER --work FOLDER [--tasks sst2 cola mrpc stsb demo] [--seeds 0 1 2]
        [--peers "teacher" "TF-IDF"] [--measure]

Every system learns from the same train, chooses by the same dev (rows held out of train), and is scored on GLUE's dev
file (the demo: on test), which nothing else looks at. It is fitted and run in a process of its own; what needs packages
gets an environment of its own under FOLDER, where all that is fitted is kept, so that it can be run in pieces.
`--measure` times what is fitted, in turns, one thread, batch 1 and 32, real rows, with and without the making of
inputs; nothing else should run then. A system that cannot do a task, or that did not run, has a row that says so; the
latter is tried again. Raw results go to benchmarks/results/curve.json; the last line is one JSON object.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import torch
from common import HERE, RESULTS, Results, finish, glue_study, make_stages, options_parser, start
from peers import PEERS, Peer

from nni_bertnas.artifacts import fingerprint
from nni_bertnas.data.metrics import METRICS
from nni_bertnas.data.models import resolve_model
from nni_bertnas.data.rows import Rows
from nni_bertnas.data.texts import some_reviews
from nni_bertnas.stages.run import Run
from nni_bertnas.student.latency import describe_machine
from nni_bertnas.training.metrics import predictions_of

_TEXTS = 60_000  # sentences without labels that every system may learn from
_BATCHES, _ROWS, _ROUNDS = (1, 32), 96, 5
_FIT_SECONDS = 4 * 3600


def main() -> None:
    """Fit, score, time, print the figures."""
    parser = options_parser(__doc__, tasks=("sst2", "cola", "mrpc", "stsb", "demo"), seeds=(0, 1, 2))
    parser.add_argument("--work", type=Path, required=True, help="folder that takes environments and fitted systems")
    parser.add_argument("--peers", nargs="+", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--measure", action="store_true", help="time what is fitted, and nothing else")
    arguments = parser.parse_args()
    start(arguments.threads)
    results = Results(RESULTS / "curve.json")
    work = arguments.work.resolve()
    for task in arguments.tasks:
        place = work / task
        job = prepare(task, arguments.glue, place)
        if arguments.measure:
            measure(results, task, place, arguments.peers)
            continue
        for seed in arguments.seeds:
            for name in arguments.peers:
                one_row(results, task, name, seed, place, job)
    finish(summary(results.data))


def prepare(task: str, glue: str, place: Path) -> Mapping[str, Any]:
    """Write a task's job.json, the teacher and what our students need being made first."""
    study = glue_study(task, glue)
    run = Run(study)
    make_stages(run, "teacher")
    data = run.data
    rows = {"train": data.splits["train"], "dev": data.splits["dev"], "test": data.splits[data.final_splits[0]]}
    job = {
        "task": task,
        "glue": str(Path(glue).resolve()),
        "kind": "score" if run.task.regression else "class",
        "num_labels": 1 if run.task.regression else len(data.label_names),
        "encoder": resolve_model(study.teacher.model),
        "teacher": str(run.folder("teacher").resolve()),
        "rows": {name: as_json(one) for name, one in rows.items()},
        "texts": some_reviews(_TEXTS, "--peers"),
    }
    place.mkdir(parents=True, exist_ok=True)
    (place / "job.json").write_text(json.dumps(job), encoding="utf-8")
    return job


def as_json(rows: Rows) -> dict[str, Any]:
    """Rows as a worker reads them."""
    return {"texts": rows.texts, "pairs": rows.pairs, "labels": [float(one) for one in rows.labels]}


def one_row(results: Results, task: str, name: str, seed: int, place: Path, job: Mapping[str, Any]) -> None:
    """Fit and score one system, if that is not done yet."""
    peer, key = PEERS[name], f"{task} | {name} | {seed}"
    if "scores" in results.data.get(key, {}) or (seed and not peer.seeded):
        return
    if job["kind"] not in peer.kinds or not (peer.pairs if job["rows"]["train"]["pairs"] else peer.texts):
        results[key] = {"cannot": "it is no task for it"}
        return
    folder = system_folder(place, name, seed)
    try:
        python = environment(peer, place.parent)
        if not folder.is_dir():
            took = fit(peer, python, place, folder, seed)
            (folder.with_suffix(".json")).write_text(json.dumps(took), encoding="utf-8")
        with serving(peer, python, place, folder, seed) as ask:
            ask({"answer": None})
    except (subprocess.SubprocessError, OSError, ValueError) as error:
        results[key] = {"cannot": str(error)[-500:]}
        print(key, results.data[key], flush=True)
        return
    answers = np.load(folder.with_suffix(".npy"))
    spec = Run(glue_study(task, job["glue"])).task
    predicted, labels = predictions_of(torch.from_numpy(answers)).numpy(), np.array(job["rows"]["test"]["labels"])
    scores = {metric: METRICS[metric].compute(labels, predicted) for metric in spec.metrics}
    results[key] = {
        "score": scores[spec.metric],
        "scores": scores,
        "size_mb": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6,
        **json.loads(folder.with_suffix(".json").read_text(encoding="utf-8")),
    }
    print(key, results.data[key], flush=True)


def system_folder(place: Path, name: str, seed: int) -> Path:
    """Where a fitted system lies."""
    return place / f"{name.replace(', ', '-').replace(' ', '-')}-{seed if PEERS[name].seeded else 0}"


def environment(peer: Peer, work: Path) -> str:
    """The Python of a system, its environment made if it is not there."""
    if not peer.needs:
        return sys.executable
    folder = work / "environments" / fingerprint(sorted(peer.needs))
    python = folder / "bin" / "python"
    if not (folder / "made").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        subprocess.run([python, "-I", "-m", "pip", "install", "--quiet", *peer.needs], check=True)
        (folder / "made").touch()
    return str(python)


def command(what: str, peer: Peer, python: str, place: Path, folder: Path, seed: int) -> dict[str, Any]:
    """How a worker is started."""
    options = dict(peer.options)
    if peer.of:
        options["of"] = str(system_folder(place, peer.of, seed))
    arguments = [
        python,
        "-m",
        "peers.worker",
        what,
        peer.module,
        str(place),
        str(folder),
        json.dumps(options),
        str(seed),
    ]
    return {"args": arguments, "env": variables(peer), "text": True}


def variables(peer: Peer) -> dict[str, str]:
    """The environment's variables of a worker; one with packages of its own finds none of ours but `peers`."""
    path = [str(HERE)] if peer.needs else [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
    said = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONWARNINGS": "ignore"}
    return {**os.environ, **said, "PYTHONPATH": os.pathsep.join(path)}


def fit(peer: Peer, python: str, place: Path, folder: Path, seed: int) -> dict[str, Any]:
    """Fit a system; it is there whole or not at all.

    Raises:
        ValueError: It does not work, with the last that it said.
    """
    half = folder.with_name(f".{folder.name}")
    subprocess.run(["rm", "-rf", half, f"{half}-made"], check=True)
    done = subprocess.run(
        **command("fit", peer, python, place, half, seed), capture_output=True, timeout=_FIT_SECONDS, check=False
    )
    if done.returncode:
        raise ValueError(f"fit, exit status {done.returncode}: {done.stderr.strip()[-400:]}")
    half.rename(folder)
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


@contextmanager
def serving(peer: Peer, python: str, place: Path, folder: Path, seed: int, threads: int | None = None) -> Iterator[Any]:
    """A fitted system in a process that answers."""
    options = command("serve", peer, python, place, folder, seed)
    if threads:
        options["env"] |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    with open(folder.with_suffix(".log"), "w", encoding="utf-8") as log:
        process = subprocess.Popen(**options, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)
        assert process.stdin and process.stdout

        def read() -> Any:
            assert process.stdout
            line = process.stdout.readline()
            if not line:
                raise ValueError(f"serve: {folder.with_suffix('.log').read_text(encoding='utf-8')[-400:]}")
            return json.loads(line)

        def ask(what: Any) -> Any:
            assert process.stdin
            process.stdin.write(json.dumps(what) + "\n")
            process.stdin.flush()
            return read()

        try:
            read()
            yield ask
        finally:
            process.stdin.close()
            process.wait(60)


def measure(results: Results, task: str, place: Path, names: Sequence[str]) -> None:
    """Time the fitted systems of a task in turns; of those whose seeds are alike one seed, which stands for all."""
    seeds = {
        name: [seed for seed in (0, 1, 2) if "scores" in results.data.get(f"{task} | {name} | {seed}", {})]
        for name in dict.fromkeys(["teacher", *names])  # all are put beside the teacher
    }
    if not seeds["teacher"]:
        raise SystemExit(f"{task}: the teacher is not fitted yet; run without --measure, --peers teacher")
    there = [(name, seed) for name, found in seeds.items() for seed in (found[:1] if PEERS[name].alike else found)]
    rows = json.loads((place / "job.json").read_text(encoding="utf-8"))["rows"]["test"]["texts"]
    numbers = np.random.default_rng(0).permutation(len(rows))[:_ROWS].tolist()
    times: dict[tuple[str, int], dict[str, list[float]]] = {one: {} for one in there}
    with ExitStack() as stack:
        asks = {
            (name, seed): stack.enter_context(serving(PEERS[name], environment(PEERS[name], place.parent), place,
                                                      system_folder(place, name, seed), seed, threads=1))
            for name, seed in there
        }  # fmt: skip
        for _ in range(_ROUNDS):
            for size in _BATCHES:
                batches = [numbers[first : first + size] for first in range(0, len(numbers), size)]
                for one, ask in asks.items():
                    ask({"time": batches[:2]})
                    found = ask({"time": batches})
                    for number, part in enumerate(("whole", "model")):
                        value = median(each[number] for each in found)
                        times[one].setdefault(f"batch {size}, {part}", []).append(value)
    for name, seed in there:
        mine = times[name, seed]
        ratios = {
            key: median(a / b for a, b in zip(times["teacher", 0][key], found, strict=True))
            for key, found in mine.items()
        }
        for other in seeds[name] if PEERS[name].alike else [seed]:
            row = results.data[f"{task} | {name} | {other}"]
            row |= {"ms": {what: median(found) for what, found in mine.items()}, "speed": ratios}
    results.data[f"{task} | machine"] = describe_machine()
    results.write()


def summary(found: Mapping[str, Any]) -> dict[str, Any]:
    """By task and system the mean score over seeds in percent, speed at batch 1 with inputs made, megabytes."""
    groups: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for key, one in found.items():
        if "scores" in one:
            task, name, _ = key.split(" | ")
            groups.setdefault(task, {}).setdefault(name, []).append(one)
    return {
        task: {
            name: {
                "score": round(100 * mean(one["score"] for one in rows), 2),
                "seeds": len(rows),
                "speed": round(mean(one["speed"]["batch 1, whole"] for one in rows), 1)
                if all("speed" in one for one in rows)
                else None,
                "size_mb": round(mean(one["size_mb"] for one in rows), 1),
            }
            for name, rows in systems.items()
        }
        for task, systems in groups.items()
    }


if __name__ == "__main__":
    main()
