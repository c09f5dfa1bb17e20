"""A masked language model fitted to the task's own text, from the encoder that the teacher starts from."""

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForMaskedLM

from nni_bertnas.data.batches import Batch, make_loader
from nni_bertnas.data.loading import load_checked, new_head
from nni_bertnas.data.models import load_tokenizer, resolve_model
from nni_bertnas.data.rows import UNLABELLED, Rows
from nni_bertnas.data.tokens import tokenize
from nni_bertnas.tracking.tracker import Progress, unwatched
from nni_bertnas.training.optimizers import adamw_linear
from nni_bertnas.training.trainer import EpochReport, Report, StepReport, fit, pl

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_BATCH_SIZE = 32
_LEARNING_RATE = 5e-4


def masked_logits(model: "PreTrainedModel", input_ids: Tensor, attention_mask: Tensor, at: Tensor) -> Tensor:
    """What a masked language model says at some positions; its head, which is as dear as its encoder, runs there alone.

    Args:
        model: Any `AutoModelForMaskedLM`.
        input_ids: `(batch, seq)`.
        attention_mask: `(batch, seq)`.
        at: `(batch, seq)`, bool.

    Returns:
        `(number of positions, vocabulary)`.
    """

    def gather(module: Any, inputs: Any, output: Any) -> Any:
        output["last_hidden_state"] = output["last_hidden_state"][at][None]
        return output

    handle = model.base_model.register_forward_hook(gather)
    try:
        return model(input_ids=input_ids, attention_mask=attention_mask).logits[0]
    finally:
        handle.remove()


class _Fitting(pl.LightningModule):
    """Masks pieces as BERT does: 15 %, of which 80 % become the mask, 10 % another piece, 10 % stay."""

    def __init__(self, model: "PreTrainedModel", tokenizer: Any, steps: int, seed: int) -> None:
        super().__init__()
        self.model = model
        self.mask_token_id = tokenizer.mask_token_id
        self.special = torch.tensor(sorted(tokenizer.all_special_ids))
        self.steps = steps
        self.seed = seed
        self.generator = torch.Generator().manual_seed(seed)
        self.hits: list[Tensor] = []

    def _masked(self, input_ids: Tensor, mask: Tensor, *, corrupt: bool) -> tuple[Tensor, Tensor]:
        words = mask & ~torch.isin(input_ids, self.special.to(input_ids.device))

        def draw() -> Tensor:
            return torch.rand(input_ids.shape, generator=self.generator).to(input_ids.device)

        at = words & (draw() < 0.15)
        kind = draw() if corrupt else torch.zeros(input_ids.shape, device=input_ids.device)
        other = (draw() * self.model.config.vocab_size).long()
        inputs = torch.where(at & (kind < 0.8), self.mask_token_id, input_ids)
        return torch.where(at & (kind >= 0.9), other, inputs), at

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        assert batch.input_ids is not None
        inputs, at = self._masked(batch.input_ids, batch.mask, corrupt=True)
        if not at.any():
            return None
        logits = masked_logits(self.model, inputs, batch.mask.long(), at)
        loss = F.cross_entropy(logits, batch.input_ids[at])
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=int(at.sum()))
        return loss

    def on_validation_epoch_start(self) -> None:
        self.generator.manual_seed(self.seed)  # the same pieces every time

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        assert batch.input_ids is not None
        inputs, at = self._masked(batch.input_ids, batch.mask, corrupt=False)
        if at.any():
            logits = masked_logits(self.model, inputs, batch.mask.long(), at)
            self.hits.append(logits.argmax(-1) == batch.input_ids[at])

    def on_validation_epoch_end(self) -> None:
        self.log("dev_accuracy", torch.cat(self.hits).float().mean())
        self.hits.clear()
        self.generator.manual_seed(self.seed + self.current_epoch + 1)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["generator"] = self.generator.get_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.generator.set_state(checkpoint["generator"])

    def configure_optimizers(self) -> Any:
        return adamw_linear(self.model.parameters(), _LEARNING_RATE, 0.01, 0.1, self.steps)


@dataclass(frozen=True, kw_only=True)
class FittedModel:
    """A masked language model as it was fitted.

    Attributes:
        model: In eval mode.
        tokenizer: Its own.
        dev_accuracy: Share of masked pieces of dev that it guesses right.
        commonest_accuracy: That of always guessing the commonest.
    """

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    dev_accuracy: float
    commonest_accuracy: float


def fit_masked_lm(
    name: str, train: Rows, dev: Rows, *, epochs: int, max_length: int, seed: int, report: Report,
    progress: Progress = unwatched, trusted: bool = False,
) -> FittedModel:  # fmt: skip
    """Fit a masked language model to texts, from an encoder.

    Args:
        name: Of the encoder, as in `teacher.model`.
        train: Single texts to learn from.
        dev: Single texts to guess after every epoch.
        epochs: Of training.
        max_length: Word pieces a text is cut to.
        seed: Of the training.
        report: Takes the metrics of every epoch.
        progress: Takes the steps done.
        trusted: Whether code that comes with the model is run.

    Raises:
        ConfigError: The model cannot be loaded or is of no kind that has a masked language model.
    """
    pl.seed_everything(seed, verbose=False)
    tokenizer = load_tokenizer(name, trusted)
    what = f"teacher.model: {name}, as a masked language model"
    model = load_checked(
        AutoModelForMaskedLM, resolve_model(name), what, new=new_head, trusted=trusted, dtype=torch.float32
    )
    tokens = {split: tokenize(tokenizer, rows, max_length) for split, rows in (("train", train), ("dev", dev))}
    loaders = {
        split: make_loader(data, _BATCH_SIZE, shuffle=split == "train", seed=seed) for split, data in tokens.items()
    }
    module = _Fitting(model.train(), tokenizer, len(loaders["train"]) * epochs, seed)
    reported = EpochReport(report)
    fit(module, loaders["train"], loaders["dev"], epochs, [reported, StepReport(progress)])
    return FittedModel(
        model=model.eval(),
        tokenizer=tokenizer,
        dev_accuracy=reported.last["dev_accuracy"],
        commonest_accuracy=_commonest(tokens["train"].tokens, tokens["dev"].tokens, tokenizer.all_special_ids),
    )


def plain_texts(rows: Rows) -> Rows:
    """Every text once, pairs apart, missing ones left out."""
    texts = [text for text in dict.fromkeys([*rows.texts, *(rows.pairs or ())]) if text]
    return Rows(texts, [UNLABELLED] * len(texts))


def _commonest(train: np.ndarray, dev: np.ndarray, special: list[int]) -> float:
    """The share of dev's pieces that are the commonest one of train."""
    counts = Counter(train[~np.isin(train, special)].tolist())
    return float((dev[~np.isin(dev, special)] == counts.most_common(1)[0][0]).mean())
