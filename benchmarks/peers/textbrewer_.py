"""TextBrewer's own recipe (arXiv 2002.12620, its presets for BERT with 3 layers): answers and hidden states matched."""

import copy
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import textbrewer
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer, get_linear_schedule_with_warmup

from peers.worker import Job, Rows

_EPOCHS, _BATCH, _RATE, _WARMUP, _TEMPERATURE = 20, 32, 1e-4, 0.1, 8
_MOST_STEPS = 6_000  # over many rows fewer epochs
_MAX_LENGTH = 128


def fit(job: Job, folder: Path) -> None:
    """See `peers`; the epoch that is best on dev is kept."""
    torch.manual_seed(job.seed)
    teacher = AutoModelForSequenceClassification.from_pretrained(job.said["teacher"])
    tokenizer = AutoTokenizer.from_pretrained(job.said["teacher"])
    student, layers, count = copy.deepcopy(teacher), job.options["layers"], teacher.config.num_hidden_layers
    student.bert.encoder.layer = nn.ModuleList(student.bert.encoder.layer[:layers])
    student.config.num_hidden_layers = layers
    batches = _Batches(job, tokenizer)
    epochs = max(1, min(_EPOCHS, _MOST_STEPS // len(batches)))
    edges = [round(number * count / layers) for number in range(layers + 1)]
    hidden = [
        {"layer_T": edge, "layer_S": number, "feature": "hidden", "loss": "hidden_mse", "weight": 1}
        for number, edge in enumerate(edges)
    ]
    best, steps = -float("inf"), epochs * len(batches)

    def keep(model: Any, step: int) -> None:
        nonlocal best
        score = _score(job, _Model(model, tokenizer))
        if score > best:
            best = score
            model.save_pretrained(folder)

    with tempfile.TemporaryDirectory() as place:
        distiller = textbrewer.GeneralDistiller(
            train_config=textbrewer.TrainingConfig(output_dir=place, device="cpu"),
            distill_config=textbrewer.DistillationConfig(
                temperature=_TEMPERATURE, kd_loss_type="ce" if job.classes else "mse", hard_label_weight=0,
                intermediate_matches=hidden,
            ),
            model_T=teacher.eval(), model_S=student, adaptor_T=_adapt, adaptor_S=_adapt,
        )  # fmt: skip
        with distiller:
            distiller.train(
                torch.optim.AdamW(student.parameters(), _RATE), batches, num_epochs=epochs, max_grad_norm=1.0,
                scheduler_class=get_linear_schedule_with_warmup,
                scheduler_args={"num_warmup_steps": int(_WARMUP * steps), "num_training_steps": steps},
                callback=keep, output_hidden_states=True,
            )  # fmt: skip
    tokenizer.save_pretrained(folder)


def load(job: Job, folder: Path) -> "_Model":
    """See `peers`."""
    torch.set_num_threads(1)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    return _Model(model, AutoTokenizer.from_pretrained(folder))


class _Batches:
    """Train in a new order every epoch."""

    def __init__(self, job: Job, tokenizer: Any) -> None:
        self.rows, self.tokenizer, self.generator = job.train, tokenizer, np.random.default_rng(job.seed)

    def __len__(self) -> int:
        return -(-len(self.rows.texts) // _BATCH)

    def __iter__(self) -> Iterator[Mapping[str, torch.Tensor]]:
        order = self.generator.permutation(len(self.rows.texts))
        for first in range(0, len(order), _BATCH):
            yield dict(_encode(self.tokenizer, self.rows.take(order[first : first + _BATCH].tolist())))


def _encode(tokenizer: Any, rows: Rows) -> Mapping[str, torch.Tensor]:
    found: Mapping[str, torch.Tensor] = tokenizer(
        rows.texts, rows.pairs, padding=True, truncation=True, max_length=_MAX_LENGTH, return_tensors="pt"
    )
    return found


def _adapt(batch: Mapping[str, torch.Tensor], outputs: Any) -> dict[str, Any]:
    return {"logits": outputs.logits, "hidden": outputs.hidden_states, "inputs_mask": batch["attention_mask"]}


class _Model:
    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model.eval(), tokenizer

    def encode(self, texts: list[str], pairs: list[str] | None) -> Mapping[str, torch.Tensor]:
        return _encode(self.tokenizer, Rows(texts, pairs, []))

    @torch.inference_mode()
    def answer(self, encoded: Any) -> np.ndarray:
        logits = self.model(**encoded).logits.double()
        return (logits.softmax(-1) if logits.shape[1] > 1 else logits).numpy()


def _score(job: Job, model: _Model) -> float:
    rows, labels = job.dev, np.array(job.dev.labels)
    parts = [list(range(first, min(first + 64, len(labels)))) for first in range(0, len(labels), 64)]
    chosen = [rows.take(one) for one in parts]
    found = np.concatenate([model.answer(model.encode(one.texts, one.pairs)) for one in chosen])
    if job.classes:
        return float((found.argmax(-1) == labels).mean())
    return float(np.corrcoef(found[:, 0], labels)[0, 1])
