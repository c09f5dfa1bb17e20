"""A tiny BERT, a tiny task, and studies made of them; no network."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from nni_bertnas.config import Study
from nni_bertnas.search.strategies import STRATEGIES, TrialOptions
from nni_bertnas.stages.choice import Prices
from nni_bertnas.stages.run import Run
from nni_bertnas.stages.stage import ensure, load
from nni_bertnas.student.candidates import Candidate, no_layer
from nni_bertnas.student.selection import Combination
from nni_bertnas.study_files import parse_study
from nni_bertnas.tracking.tracker import Tracker
from search_space.cells import Cell

WORDS = ["q" + chr(97 + number // 10) + chr(97 + number % 10) for number in range(95)]  # qaa to qje


def chain(*operations: str) -> Candidate:
    """A cell of these operations one after another."""
    architecture = {f"layer_{number}": name for number, name in enumerate(operations)}
    return Candidate(space="layers", depth=len(operations), architecture=architecture)


def chain_cell(*operations: str, teacher_size: int, hidden_size: int) -> Cell:
    """The cell that :func:`chain` describes."""
    return chain(*operations).fresh(teacher_size, hidden_size).trained


def write_tiny_model(folder: Path) -> Path:
    """Save a BERT of 2 layers, width 32, with a tokenizer of 100 words."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    torch.manual_seed(0)
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    shape = BertConfig(
        vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=64,
    )  # fmt: skip
    BertModel(shape).save_pretrained(folder)
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


def write_tiny_task(folder: Path, num_train: int = 240, num_dev: int = 40) -> Path:
    """Write SST-2's layout: a text is positive when it holds more of the first ten words than of the second ten."""
    generator = np.random.default_rng(0)
    for name, count in (("train.tsv", num_train), ("dev.tsv", num_dev)):
        lines = ["sentence\tlabel"]
        for number in range(count):
            label = number % 2
            clue = generator.integers(0, 10, 2) + (0 if label else 10)
            words = np.concatenate([clue, generator.integers(20, 95, generator.integers(2, 12))])
            lines.append(" ".join(WORDS[word] for word in generator.permutation(words)) + f"\t{label}")
        path = folder / "SST-2" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n")
    return folder


def pair(generator: np.random.Generator) -> tuple[str, str, int]:
    """Two texts of six words, and how many clues the second holds."""
    first = generator.choice(WORDS[10:], 6)
    clues = int(generator.integers(0, 6))
    second = np.concatenate([generator.choice(WORDS[:10], clues), generator.choice(WORDS[10:], 6 - clues)])
    return " ".join(first), " ".join(generator.permutation(second)), clues


def write_scores(folder: Path) -> dict:
    """STS-B's layout."""
    generator = np.random.default_rng(0)
    columns = [
        "index",
        "genre",
        "filename",
        "year",
        "old_index",
        "source1",
        "source2",
        "sentence1",
        "sentence2",
        "score",
    ]
    (folder / "STS-B").mkdir(parents=True)
    for name, count in (("train.tsv", 300), ("dev.tsv", 60)):
        lines = ["\t".join(columns)]
        for number in range(count):
            first, second, clues = pair(generator)
            lines.append("\t".join([str(number), *["x"] * 6, first, second, f"{clues:.3f}"]))
        (folder / "STS-B" / name).write_text("\n".join(lines) + "\n")
    return {"name": "stsb", "source": "glue", "data_dir": str(folder), "max_length": 32}


def tiny_study_fields(root: Path) -> dict:
    """Plain data of a study that runs in seconds; its files lie under `root`."""
    model, data = root / "model", root / "data"
    if not model.exists():
        write_tiny_model(model)
        write_tiny_task(data)
    return {
        "name": "tiny",
        "runs_dir": str(root / "runs"),
        "task": {"name": "sst2", "source": "glue", "data_dir": str(data), "max_length": 32},
        "teacher": {"model": str(model), "epochs": 3, "learning_rate": 3e-3, "num_blocks": 2},
        "student": {"hidden_size": 16, "embedding_size": 8, "precision": "float32"},
        "cell": {"strategy": "darts", "depths": [1], "epochs": 2, "candidates": 2},
        "block": {"candidates": 2, "epochs": 1, "no_layer": False},
        "supernet": {"bag": False, "finalists": 1, "epochs": 6, "learning_rate": 3e-3, "embedding_learning_rate": 3e-3},
        "general": {"rows": 0},
        "nni": {"concurrency": 2},
    }


def tiny_study(root: Path, **sections: Any) -> Study:
    """The tiny study with some fields of some sections changed; strategies that take samples take three."""
    fields = tiny_study_fields(root)
    for name, changes in sections.items():
        fields[name] = {**fields.get(name, {}), **changes} if isinstance(changes, dict) else changes
    if issubclass(STRATEGIES[fields["cell"]["strategy"]].options, TrialOptions):
        fields["cell"] = {**fields["cell"], "options": {"samples": 3, **fields["cell"].get("options", {})}}
    return parse_study(fields)


def tiny_run(root: Path, **sections: Any) -> Run:
    """The tiny study opened; see :func:`tiny_study`."""
    return Run(tiny_study(root, **sections))


def shrink_demo(path: Path, rows: int = 384) -> None:
    """Make the demo's study file one of minutes: the same model and text, fewer rows and epochs."""
    fields = yaml.safe_load(path.read_text())
    fields["task"] |= {"max_train_rows": rows}
    fields["transfer"] = {"reviews": 64}
    fields["teacher"] |= {"epochs": 1}
    fields["cell"] |= {"strategy": "darts", "options": {"ranking": "probability"}, "epochs": 2, "candidates": 2}
    fields["block"] = {"epochs": 1, "candidates": 2}
    fields["supernet"] = {"epochs": 2, "finalists": 1, "budget": {"max_params": 6_000_000}}
    path.write_text(yaml.safe_dump(fields))


def all_units(run: Run, *names: str) -> None:
    """Make every unit of some stages."""
    for name in names:
        for unit in load(name).units(run):
            ensure(run, name, unit)


MEASURED = ("seconds", "latency", "speedup", "checksum")  # in names of what differs from run to run


def without_times(value: Any, *others: str) -> Any:
    """A result without what a clock says, at any depth, and without what has such other words in its name."""
    if isinstance(value, Mapping):
        words = (*MEASURED, *others)
        return {
            name: without_times(one, *others) for name, one in value.items() if not any(word in name for word in words)
        }
    return [without_times(one, *others) for one in value] if isinstance(value, list) else value


def rewrite(path: Path, result: Mapping[str, Any]) -> None:
    """Change a result on purpose: without the checksum that says it is as it was written."""
    path.write_text(json.dumps({name: value for name, value in result.items() if name != "checksum"}))


class Recorder(Tracker):
    """Keeps what a stage reports."""

    def __init__(self) -> None:
        super().__init__()
        self.reported: list[dict[str, float]] = []
        self.parts: list[dict[str, float]] = []  # epochs of trainings inside the unit, by the part's name
        self.results: list[dict[str, float]] = []

    def epoch(self, metrics: Mapping[str, float], default: str | None) -> None:
        assert default is None or default in metrics
        (self.reported if default is not None else self.parts).append(dict(metrics))

    def final(self, metrics: Mapping[str, float]) -> None:
        self.results.append(dict(metrics))


class Keeper:
    """A book that keeps what it is told."""

    def __init__(self) -> None:
        self.kept: list[dict[str, float]] = []
        self.states: list[str] = []

    def begin(self, kept: Sequence[Mapping[str, Any]] = ()) -> None:
        self.states.append("begun")

    def epoch(self, metrics: Mapping[str, float]) -> None:
        self.kept.append(dict(metrics))

    def final(self, metrics: Mapping[str, float]) -> None:
        pass

    def end(self, state: str) -> None:
        self.states.append(state)

    def close(self) -> None:
        pass


def option(score: float, num_params: int, latency_ms: float) -> Candidate:
    return replace(chain("zero"), score=score, num_params=num_params, latency_ms=latency_ms, num_flops=2 * num_params)


def nothing(score: float) -> Candidate:
    return replace(no_layer(), score=score, latency_ms=0.1)


PRICES = Prices(
    blocks=[
        [option(0.1, 400, 3.0), option(0.2, 100, 1.0), nothing(0.6)],
        [option(0.3, 400, 2.0), option(0.5, 100, 1.5), nothing(0.7)],
    ],
    base=option(0.0, 50, 1.0),
    teacher_ms=12.0,
    bag=Combination(choice=(2, 2), score=1.3, num_params=45, num_flops=90, latency_ms=0.5),  # less than its parts
)
