"""The teacher cut to its first layers and distilled as our students are: their rows, losses of answers and labels."""

import copy
from pathlib import Path

import torch
from common import glue_study
from torch import nn

from nni_bertnas.data.batches import make_loader, make_stream, model_inputs
from nni_bertnas.stages.rows import all_rows
from nni_bertnas.stages.run import Run
from nni_bertnas.store.reader import FeatureDataset
from nni_bertnas.training.losses import Output, Scale, weighted_losses
from nni_bertnas.training.metrics import evaluate_classifier
from peers import teacher
from peers.worker import Job

load = teacher.load
_RATE, _WARMUP, _WEIGHTS = 1e-4, 0.1, {"logit_mse": 1.0, "label": 0.1}


def fit(job: Job, folder: Path) -> None:
    """See `peers`; the epoch that is best on dev is kept."""
    torch.manual_seed(job.seed)
    run = Run(glue_study(job.said["task"], job.said["glue"]))
    whole, tokenizer = run.load_teacher()
    model = copy.deepcopy(whole).requires_grad_(True)
    model.bert.encoder.layer = nn.ModuleList(model.bert.encoder.layer[: job.options["layers"]])
    model.config.num_hidden_layers = job.options["layers"]
    settings = run.study.supernet
    loader = make_stream(
        all_rows(run, hidden=False, vectors=False), settings.batch_size, seed=job.seed, epoch_rows=settings.epoch_rows
    )
    dev = make_loader(FeatureDataset(run.dev, (), tokens=True), 128, shuffle=False)
    steps = len(loader) * settings.epochs
    optimizer = torch.optim.AdamW(model.parameters(), _RATE)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, step / (_WARMUP * steps)) * max(0.0, 1 - step / steps)
    )
    scale, best = Scale(), -float("inf")
    for _ in range(settings.epochs):
        model.train()
        for batch in loader:
            loss, _ = weighted_losses(_WEIGHTS, Output(logits=model(**model_inputs(model, batch)).logits), batch, scale)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        score = evaluate_classifier(model.eval(), dev, run.task)[run.task.metric]
        if score > best:
            best = score
            model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
