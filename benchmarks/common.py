"""What the benchmarks share: studies, stages in this process, raw results that can be gone on with, the last line."""

import argparse
import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

from nni_bertnas import quiet_libraries
from nni_bertnas.config import Study
from nni_bertnas.data.batches import Batch, model_inputs
from nni_bertnas.stages.run import Run
from nni_bertnas.stages.stage import ensure, load
from nni_bertnas.study_files import parse_study, read_yaml
from nni_bertnas.training.losses import label_loss

HERE = Path(__file__).parent
RESULTS = HERE / "results"
STUDIES = HERE.parent / "experiment_configs" / "studies"


def options_parser(
    about: str | None, *, tasks: Sequence[str] = (), seeds: Sequence[int] = ()
) -> argparse.ArgumentParser:
    """A command line with what most benchmarks take.

    Args:
        about: The module's docstring.
        tasks: Of GLUE, by default; none: the benchmark has no such choice.
        seeds: Likewise.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--glue", required=True, help="folder that holds SST-2/, MRPC/ …")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    if tasks:
        parser.add_argument("--tasks", nargs="+", default=list(tasks))
    if seeds:
        parser.add_argument("--seeds", nargs="+", type=int, default=list(seeds))
    return parser


def start(threads: int) -> None:
    """Set this process up."""
    quiet_libraries()
    torch.set_num_threads(threads)


def change(study: Study, **sections: Any) -> Study:
    """A study with some fields of some sections changed; what is no mapping is a field of the study itself."""
    fields = {
        name: dataclasses.replace(getattr(study, name), **value) if isinstance(value, Mapping) else value
        for name, value in sections.items()
    }
    return dataclasses.replace(study, **fields)


def glue_study(name: str, glue: str, rows: int | None = None, profile: str | None = None) -> Study:
    """The study of a GLUE task or `demo`; with train cut to `rows`, with the teacher of the uncut study as it is."""
    demo = name == "demo"
    raw = read_yaml(STUDIES / "demo.yml" if demo else STUDIES / "glue" / f"{name}.yml")
    study = parse_study({**raw, "profile": profile} if profile else raw)
    study = study if demo else change(study, task={"data_dir": glue})
    if rows is None:
        return study
    run = Run(study)
    ensure(run, "teacher")
    teacher = {"model": str(run.folder("teacher")), "fine_tune": "never"}
    return change(study, name=f"{study.name}-{rows}", task={"max_train_rows": rows}, teacher=teacher)


def make_stages(run: Run, *names: str) -> None:
    """Every unit of some stages, in this process."""
    for name in names:
        for unit in load(name).units(run):
            ensure(run, name, unit)


def teacher_step(run: Run, *, fused: bool = True, half: bool = False) -> Callable[[Batch], None]:
    """One step of fine-tuning the saved teacher; in mixed precision, or without fused AdamW, where asked for."""
    model = run.load_teacher()[0].requires_grad_(True).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=fused)

    def step(batch: Batch) -> None:
        assert batch.labels is not None
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = label_loss(model(**model_inputs(model, batch)).logits, batch.labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


class Results:
    """Raw results, written after every unit of work; what is there is not done again.

    Args:
        path: The JSON file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def __contains__(self, name: str) -> bool:
        return name in self.data

    def __setitem__(self, name: str, value: Any) -> None:
        self.data[name] = value
        self.write()

    def write(self) -> None:
        """Write all there is."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.data, indent=1), encoding="utf-8")


def finish(figures: Any) -> None:
    """Print the last line: the figures as one JSON object."""
    print(json.dumps(figures))
