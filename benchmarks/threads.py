"""What waiting threads cost, alone and beside another torch process, by how OpenMP waits: a step, or a whole phase.

    python benchmarks/threads.py [--steps 200 | --phase experiment_configs/studies/demo.yml] [--turns 3]

Every setting is measured in processes of its own, in turns; raw results go to benchmarks/results/threads.json, the last
line is one JSON object: median milliseconds of a student's training step, or seconds of the study's block phase, whose
cells are made first. Four minutes on two cores; a phase takes a minute or more each time.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from common import RESULTS, Results, finish, make_stages

from nni_bertnas.stages.run import Run
from nni_bertnas.study_files import load_study

SETTINGS: dict[str, dict[str, str]] = {
    "default": {"GOMP_SPINCOUNT": ""},
    "spin 1000": {"GOMP_SPINCOUNT": "1000"},
    "spin 10000": {"GOMP_SPINCOUNT": "10000"},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
}
_BURN = "import torch; x = torch.randn(700, 700)\nwhile True: x = (x @ x).tanh()"


def measure(steps: int) -> float:
    """Median milliseconds of a step of a student of three cells, 32 rows of 30 word pieces, in this process."""
    import torch  # here, as the environment of OpenMP must stand before

    from search_space.student import StudentConfig, StudentForSequenceClassification

    torch.manual_seed(0)
    torch.set_num_threads(2)
    names = ("convolution_3", "attention_4", "attention_4")
    cells = [{"space": "layers", "depth": 1, "architecture": {"layer_0": name}} for name in names]
    student = StudentForSequenceClassification(StudentConfig(cells=cells)).train()
    student.embeddings.word.requires_grad_(False)
    optimizer = torch.optim.AdamW([one for one in student.parameters() if one.requires_grad], fused=True)
    ids, labels, taken = torch.randint(5, 30_000, (32, 30)), torch.randint(0, 2, (32,)), []
    for _ in range(steps):
        start = time.perf_counter()
        optimizer.zero_grad()
        student(ids, labels=labels).loss.backward()
        optimizer.step()
        taken.append(1000 * (time.perf_counter() - start))
    return statistics.median(taken[steps // 10 :])


def phase(study: Path) -> float:
    """Seconds of the block phase, made anew, in this process."""
    run = Run(load_study(study))
    make_stages(run, "teacher", "features", "cell")
    for block in range(run.num_blocks):
        shutil.rmtree(run.folder("block", {"block": block}), ignore_errors=True)
    start = time.perf_counter()
    make_stages(run, "block")
    return time.perf_counter() - start


def run(setting: dict[str, str], what: list[str], beside: bool) -> float:
    """What is measured, in its own process, beside a busy one where asked for, which waits as torch does by default."""
    clean = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    other = subprocess.Popen([sys.executable, "-c", _BURN], env=clean) if beside else None
    try:
        command = [sys.executable, __file__, "--measure", *what]
        wanted = {name: value for name, value in setting.items() if value}
        done = subprocess.run(command, env=clean | wanted, capture_output=True, text=True, check=True)
    finally:
        if other is not None:
            other.kill()
            other.wait()
    return float(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Measure every setting in turns, write the results, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--phase", type=Path, metavar="STUDY", help="measure the block phase of this study instead")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        finish(phase(arguments.phase) if arguments.phase else measure(arguments.steps))
        return
    what = ["--phase", str(arguments.phase)] if arguments.phase else ["--steps", str(arguments.steps)]
    unit = "seconds" if arguments.phase else "milliseconds"
    found: dict[str, dict[str, list[float]]] = {name: {"alone": [], "beside": []} for name in SETTINGS}
    for _ in range(arguments.turns):
        for name, setting in SETTINGS.items():
            for kind, values in found[name].items():
                values.append(run(setting, what, kind == "beside"))
                print(name, kind, f"{values[-1]:.1f} {unit}", flush=True)
    results = Results(RESULTS / "threads.json")
    results[unit] = found
    finish({name: {kind: round(statistics.median(v), 1) for kind, v in one.items()} for name, one in found.items()})


if __name__ == "__main__":
    main()
