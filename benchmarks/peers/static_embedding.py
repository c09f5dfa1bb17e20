"""sentence-transformers' StaticEmbedding, started from the encoder's word vectors, trained with a small head.

Scores of pairs are the cosine of two vectors, as in its CosineSimilarityLoss, of the labels' range.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F

from peers.worker import Job, Rows

_FILE, _EPOCHS, _BATCH = "model.safetensors", 6, 64


class _Net(nn.Module):
    def __init__(self, static: StaticEmbedding, job: Job) -> None:
        super().__init__()
        self.static, self.pairs = static, job.train.pairs is not None
        self.range = None if job.classes else (min(job.train.labels), max(job.train.labels))
        width = static.embedding.embedding_dim
        read = 2 * width + 1 if self.pairs else width
        self.head = nn.Sequential(nn.Linear(read, 256), nn.ReLU(), nn.Dropout(0.1), nn.Linear(256, job.num_labels))

    def encode(self, texts: list[str], pairs: list[str] | None) -> list[dict[str, Tensor]]:
        return [self.static.preprocess(one) for one in (texts, *([] if pairs is None else [pairs]))]

    def forward(self, encoded: list[dict[str, Tensor]]) -> Tensor:
        vectors = [self.static(dict(one))["sentence_embedding"] for one in encoded]
        if self.pairs:
            first, second = vectors
            cosine = F.cosine_similarity(first, second)[:, None]
            if self.range:
                low, high = self.range
                return low + (high - low) * cosine
            return self.head(torch.cat([(first - second).abs(), first * second, cosine], 1))
        return self.head(vectors[0])


def _new(job: Job) -> _Net:
    encoder = SentenceTransformer(job.encoder, device="cpu")
    weights = encoder[0].auto_model.embeddings.word_embeddings.weight.detach().clone()
    tokenizer = Tokenizer.from_file(str(Path(job.encoder, "tokenizer.json")))
    return _Net(StaticEmbedding(tokenizer, embedding_weights=weights), job)


def _loss(job: Job, logits: Tensor, labels: list[float]) -> Tensor:
    if job.classes:
        return F.cross_entropy(logits, torch.tensor(labels).long())
    return F.mse_loss(logits[:, 0], torch.tensor(labels).float())


@torch.inference_mode()
def _dev_loss(job: Job, net: _Net) -> float:
    net.eval()
    return float(_loss(job, net(net.encode(job.dev.texts, job.dev.pairs)), job.dev.labels))


def fit(job: Job, folder: Path) -> None:
    """See `peers`."""
    torch.set_num_threads(2)
    torch.manual_seed(job.seed)
    net = _new(job)
    steps = _EPOCHS * (len(job.train.texts) // _BATCH + 1)
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    best = float("inf")
    for _ in range(_EPOCHS):
        net.train()
        for numbers in torch.randperm(len(job.train.texts)).split(_BATCH):
            some: Rows = job.train.take(numbers.tolist())
            loss = _loss(job, net(net.encode(some.texts, some.pairs)), some.labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        if (found := _dev_loss(job, net)) < best:
            best = found
            save_file(net.state_dict(), folder / _FILE)


class _Model:
    def __init__(self, job: Job, folder: Path) -> None:
        torch.set_num_threads(1)
        self.net, self.classes = _new(job), job.classes
        self.net.load_state_dict(load_file(folder / _FILE))
        self.net.eval()

    def encode(self, texts: list[str], pairs: list[str] | None) -> Any:
        return self.net.encode(texts, pairs)

    @torch.inference_mode()
    def answer(self, encoded: Any) -> np.ndarray:
        logits = self.net(encoded)
        return (logits.softmax(-1) if self.classes else logits).numpy()


def load(job: Job, folder: Path) -> _Model:
    """See `peers`."""
    return _Model(job, folder)
