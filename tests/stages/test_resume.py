"""Units that are killed while they are made, by a real SIGKILL, and made again: as if nothing had been."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny_run, without_times

from nni_bertnas.stages.run import Run, unit_name
from nni_bertnas.tracking.histories import HISTORY, read_history, record_name

TESTS = Path(__file__).parents[1]
SEARCHES: dict[str, dict[str, Any]] = {
    "darts": {"strategy": "darts", "epochs": 4, "options": {"warmup_epochs": 1, "operation_dropout": 0.2}},
    "gumbel_darts": {"strategy": "gumbel_darts", "epochs": 3},
    "proxyless": {"strategy": "proxyless", "epochs": 3},
    "random_one_shot": {"strategy": "random_one_shot", "epochs": 3},
    "random": {"strategy": "random", "epochs": 2, "options": {"samples": 3}},
}
STUDENT = {
    "supernet": {"epochs": 4, "last_epochs": 2, "finalists": 2, "averaging": 0.25, "patience": 3, "epoch_rows": 96},
    "general": {"rows": 60, "epochs": 3, "cells": 40},
    "block": {"epochs": 3, "start": "fresh"},
}
FIT = {"augment": {"copies": 1, "fit_epochs": 3}}
CELL = ("cell", {"block": 0, "depth": 1})
CELL_1 = ("cell", {"block": 1, "depth": 1})
CHAIN = [*(("block", {"block": block}) for block in (0, 1)), ("supernet", {"seed": 0})]


def work(root: Path, jobs: list[Any]) -> list[int]:
    """How many attempts each took."""
    program = [sys.executable, str(TESTS / "killed.py"), str(root), json.dumps(jobs)]
    done = subprocess.run(program, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def check_equal(one: Run, other: Run, stage: str, unit: dict[str, Any]) -> None:
    """Results, weights and histories, but for times."""
    name = record_name(stage, unit_name(unit))
    lines = [[{k: v for k, v in line.items() if k != "seconds"} for line in read_history(run.root / HISTORY, name)]
             for run in (one, other)]  # fmt: skip
    assert lines[0] == lines[1] and lines[0]
    seconds = [line["seconds"] for line in read_history(other.root / HISTORY, name)]
    assert seconds == sorted(seconds)
    folders = [run.folder(stage, unit) for run in (one, other)]
    assert without_times(one.read(stage, unit), "fingerprint") == without_times(other.read(stage, unit), "fingerprint")
    files = [sorted(str(file.relative_to(folder)) for file in folder.rglob("*.safetensors")) for folder in folders]
    assert files[0] == files[1] and files[0]
    for file in files[0]:
        first, second = (load_file(folder / file) for folder in folders)
        assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first), file
    assert not list(other.root.rglob("*.unfinished")) and not list(other.root.glob(".*.????????"))


def jobs(savings: int) -> list[Any]:
    """Units with their studies, killed after so many savings; without BERTNAS_KILLS two of them."""
    searched = [({"name": name, "cell": cell}, *CELL, savings) for name, cell in SEARCHES.items()]
    student = {**STUDENT, "name": "darts", "cell": SEARCHES["darts"]}
    fitted = ({**FIT, "name": "darts"}, "masked_lm", {}, savings)
    chained = [(student, stage, unit, savings) for stage, unit in (CELL_1, *CHAIN)]
    return [fitted, *searched, *chained] if LONG else [fitted, searched[0]]


LONG = "BERTNAS_KILLS" in os.environ


@pytest.mark.slow
def test_every_training_goes_on_bit_equal_after_kills(built: Run, tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    shutil.copytree(built.root.parents[1], one)
    for name in SEARCHES:
        shutil.copytree(built.root, one / "runs" / name)
    shutil.copytree(one, other)
    assert set(work(one, jobs(0))) == {1}
    # What parts take is measured once, as choices go by it.
    if (one / "runs" / ".shared").exists():
        shutil.copytree(one / "runs" / ".shared", other / "runs" / ".shared", dirs_exist_ok=True,
                        ignore=shutil.ignore_patterns("general-*"))  # fmt: skip
    taken = work(other, jobs(2))
    for (sections, stage, unit, _), count in zip(jobs(2), taken, strict=True):
        check_equal(tiny_run(one, **sections), tiny_run(other, **sections), stage, unit)
        assert count > 1, (sections["name"], stage)
    print(f"{sum(taken) - len(taken)} kills survived: {taken}")
