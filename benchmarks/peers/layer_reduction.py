"""sentence-transformers' layer reduction: every third layer of the encoder, its vectors learnt by EmbedDistillLoss."""

import tempfile
from pathlib import Path

import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import EmbedDistillLoss

from peers import linear
from peers.features import fit_linear
from peers.worker import Job

load = linear.load
_ROWS = 60_000  # that the vectors are learnt from, at most
_EPOCHS = 3  # over few rows; one over many


def fit(job: Job, folder: Path) -> None:
    """See `peers`."""
    torch.manual_seed(job.seed)
    teacher, student = (SentenceTransformer(job.encoder, device="cpu") for _ in range(2))
    layers = student[0].auto_model.encoder.layer
    count = job.options["layers"]
    kept = [round((number + 1) * len(layers) / count) - 1 for number in range(count)]
    student[0].auto_model.encoder.layer = torch.nn.ModuleList(layers[number] for number in kept)
    student[0].auto_model.config.num_hidden_layers = count
    texts = list(dict.fromkeys([*job.train.texts, *(job.train.pairs or []), *job.said["texts"]]))[:_ROWS]
    data = Dataset.from_dict({"text": texts, "label": teacher.encode(texts, batch_size=64, show_progress_bar=False)})
    with tempfile.TemporaryDirectory() as place:
        options = SentenceTransformerTrainingArguments(
            output_dir=place, num_train_epochs=_EPOCHS if len(texts) < 20_000 else 1, per_device_train_batch_size=64,
            learning_rate=1e-4, warmup_steps=100, seed=job.seed, report_to="none", save_strategy="no",
            disable_tqdm=True, use_cpu=True,
        )  # fmt: skip
        SentenceTransformerTrainer(student, options, data, loss=EmbedDistillLoss(student)).train()
    fit_linear(job, linear.embed(student), folder)
    student.save(str(folder / linear.ENCODER))
