"""Untrained students for use, and rows for them."""

from pathlib import Path

import numpy as np
import torch
from tiny import WORDS, write_tiny_model
from transformers import AutoTokenizer

from nni_bertnas.data.rows import Rows
from search_space.student import StudentConfig, StudentForSequenceClassification

NAMES = {"single_label_classification": ["no", "maybe", "yes"], "regression": ["score"]}


def texts(count: int, seed: int = 0) -> list[str]:
    generator = np.random.default_rng(seed)
    return [" ".join(generator.choice(WORDS, generator.integers(1, 14))) for _ in range(count)]


def write_student(folder: Path, cells: list[dict], *, problem: str = "single_label_classification", **shape) -> Path:
    """An untrained student for use, with the tiny model's tokenizer."""
    write_tiny_model(folder.parent / "tokenizer")
    torch.manual_seed(0)
    pairs = shape.get("head", "pool") != "pool"
    names = dict(enumerate(NAMES.get(problem, NAMES["single_label_classification"])))
    config = StudentConfig(
        cells=cells, hidden_size=24, teacher_hidden_size=32, embedding_size=16, vocab_size=100,
        max_position_embeddings=32, token_weights=True, static_path=True, sep_token_id=3, problem_type=problem,
        id2label=names, label2id={name: number for number, name in names.items()},
        bertnas_task={"name": "own", "texts": ["a", "b"] if pairs else ["a"], "max_length": 32}, **shape,
    )  # fmt: skip
    student = StudentForSequenceClassification(config).eval()
    for parameter in student.parameters():
        if parameter.ndim:  # so that whatever is left out is seen
            torch.nn.init.normal_(parameter, std=0.2)
    torch.nn.init.normal_(student.classifier.weight, std=2.0)
    types = torch.arange(12).ge(6).long().expand(64, 12)
    with torch.no_grad():  # so that not every row gets the same answer
        logits = student(torch.randint(5, 100, (64, 12)), token_type_ids=types).logits
        student.classifier.bias.sub_(logits.mean(0))
    student.fused().eval().save_pretrained(folder)
    AutoTokenizer.from_pretrained(folder.parent / "tokenizer").save_pretrained(folder)
    return folder


def some_rows(pairs: bool, count: int = 40) -> Rows:
    return Rows(texts(count), [0.0] * count, texts(count, 1) if pairs else None)


def chain_of(names: list[str]) -> dict:
    return {
        "space": "sequential",
        "depth": len(names),
        "architecture": {f"layer_{number}": name for number, name in enumerate(names)},
    }
