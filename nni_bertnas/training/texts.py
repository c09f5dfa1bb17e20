"""Pre-distillation of a student on text of no task in particular: its vectors of texts become the pretrained model's.

Bert-like students that first learn what the teacher makes of general text learn tasks better (TinyBERT, arXiv
1909.10351; of sentence vectors DSRA, arXiv 2004.03097).
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from nni_bertnas.config import GeneralSettings
from nni_bertnas.data.batches import Batch, make_loader, model_inputs
from nni_bertnas.store.reader import FeatureDataset, FeatureStore
from nni_bertnas.tracking.tracker import Progress, unwatched
from nni_bertnas.training.losses import Output, Scale, weighted_losses
from nni_bertnas.training.optimizers import RowSparseAdamW, adamw_linear, clip_gradients
from nni_bertnas.training.trainer import EpochReport, Report, fit, pl
from search_space.student import StudentForSequenceClassification

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TEXTS = "texts"  # a store of the general texts,
PIECES = "pieces.npy"  # and the vectors of all word pieces, beside each other in one folder
_BATCH_PIECES = 512
_WARMUP = 0.1  # share of all steps


@torch.inference_mode()
def piece_vectors(
    encoder: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", progress: Progress = unwatched
) -> np.ndarray:
    """What an encoder makes of every word piece that stands alone between the special ones.

    As static embeddings are distilled by model2vec.

    Args:
        encoder: In eval mode.
        tokenizer: Its own.
        progress: Takes the word pieces done.

    Returns:
        `(vocab, hidden)`, half precision.
    """
    vocab, frame = encoder.config.vocab_size, tokenizer("").input_ids
    opening, closing = frame[: (len(frame) + 1) // 2], frame[(len(frame) + 1) // 2 :]
    found = []
    for first in range(0, vocab, _BATCH_PIECES):
        pieces = torch.arange(first, min(vocab, first + _BATCH_PIECES))[:, None]
        parts = (torch.tensor(opening).expand(len(pieces), -1), pieces, torch.tensor(closing).expand(len(pieces), -1))
        ids = torch.cat(parts, dim=1)
        batch = Batch(input_ids=ids, mask=torch.ones_like(ids).bool(), token_type_ids=torch.zeros_like(ids))
        hidden = encoder(**model_inputs(encoder, batch)).last_hidden_state
        found.append(hidden[:, len(opening)].half().cpu().numpy())
        progress(first + len(pieces), vocab, "word pieces")
    return np.concatenate(found)


class _TextDistillation(pl.LightningModule):
    def __init__(
        self, student: StudentForSequenceClassification, vector_map: nn.Module, settings: GeneralSettings, steps: int
    ) -> None:
        super().__init__()
        self.student, self.vector_map = student, vector_map
        self.settings, self.steps = settings, steps

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        inputs = model_inputs(self.student, batch)
        vectors, _ = self.student.text_vectors(inputs["input_ids"], inputs["attention_mask"])
        loss, _ = weighted_losses({"sentence_vector": 1.0}, Output(vectors=self.vector_map(vectors)), batch, Scale())
        self.log("train_loss", loss.detach(), on_step=False, on_epoch=True, batch_size=batch.num_rows, sync_dist=True)
        return loss

    def configure_optimizers(self) -> Any:
        rate = self.settings.learning_rate
        return adamw_linear(self.parameters(), rate, 0.01, _WARMUP, self.steps, RowSparseAdamW)

    def configure_gradient_clipping(self, optimizer: Any, gradient_clip_val: Any = None, **_: Any) -> None:
        clip_gradients(self.parameters(), gradient_clip_val)


def distil_texts(
    student: StudentForSequenceClassification,
    vector_map: nn.Module,
    store: FeatureStore,
    settings: GeneralSettings,
    *,
    seed: int,
    report: Report,
) -> None:
    """Train a student's vectors of texts, and the map from its width to the teacher's, on general text.

    Args:
        student: Trained in place; its head's last layers are not.
        vector_map: `(…, width)` -> `(…, teacher_hidden)`, trained in place.
        store: Of the texts.
        settings: Of the training.
        seed: Of the order of the texts.
        report: Takes the metrics of every epoch.
    """
    loader = make_loader(
        FeatureDataset(store, (), tokens=True, vectors=True), settings.batch_size, shuffle=True, seed=seed
    )
    for table in student.tables:
        table.sparse = True  # its gradient; nothing that is saved
    module = _TextDistillation(student, vector_map, settings, settings.epochs * len(loader))
    fit(module.train(), loader, None, settings.epochs, [EpochReport(report)])
    student.eval()
