"""The masked language model of the augmentation: found, or fitted to the teacher's encoder on the task's own text."""

import logging
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from nni_bertnas.artifacts import RunDirectory, atomic_folder, fingerprint, read_result, write_result
from nni_bertnas.config import Study
from nni_bertnas.data.batches import data_fingerprint, load_task, load_transfer, make_loader, tokenize
from nni_bertnas.data.sources import UNLABELLED, Rows
from nni_bertnas.errors import ConfigError, PhaseError
from nni_bertnas.training.teacher import load_tokenizer, resolve_model, weights_fingerprint
from nni_bertnas.training.trainer import EpochReport, Report, adamw_linear, fit, pl

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_BATCH_SIZE = 32
_LEARNING_RATE = 5e-4
_log = logging.getLogger(__name__)


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


def find_masked_lm(study: Study) -> str:
    """The folder or hub name of the study's masked language model.

    Raises:
        PhaseError: None is named, and none is fitted.
    """
    if study.augment.masked_lm is not None:
        return resolve_model(study.augment.masked_lm)
    folder = RunDirectory(study).masked_lm
    if read_result(folder) is None:
        raise PhaseError(
            "augment.masked_lm names no model and none is fitted; name one, or fit one to the teacher's encoder with: "
            "bertnas augment STUDY --fit-mlm"
        )
    return str(folder)


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

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor | None:
        inputs, at = self._masked(batch["input_ids"], batch["mask"], corrupt=True)
        if not at.any():
            return None
        logits = masked_logits(self.model, inputs, batch["mask"].long(), at)
        loss = F.cross_entropy(logits, batch["input_ids"][at])
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=int(at.sum()))
        return loss

    def on_validation_epoch_start(self) -> None:
        self.generator.manual_seed(self.seed)  # the same pieces every time

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        inputs, at = self._masked(batch["input_ids"], batch["mask"], corrupt=False)
        if at.any():
            logits = masked_logits(self.model, inputs, batch["mask"].long(), at)
            self.hits.append(logits.argmax(-1) == batch["input_ids"][at])

    def on_validation_epoch_end(self) -> None:
        self.log("dev_accuracy", torch.cat(self.hits).float().mean())
        self.hits.clear()
        self.generator.manual_seed(self.seed + self.current_epoch + 1)

    def configure_optimizers(self) -> Any:
        return adamw_linear(self.model.parameters(), _LEARNING_RATE, 0.01, 0.1, self.steps)


def ensure_masked_lm(study: Study, report: Report = lambda metrics: None) -> dict[str, Any]:
    """Fit a masked language model to the text of train, from the encoder that the teacher starts from; kept.

    Args:
        study: Its `teacher.model` gives the encoder, its task the text (transfer rows included).
        report: Takes the metrics of every epoch.

    Returns:
        The result: share of masked pieces of dev that are guessed right, and that of always guessing the commonest.

    Raises:
        ConfigError: The model cannot be loaded or is of no kind that has a masked language model.
    """
    run = RunDirectory(study)
    source = resolve_model(study.teacher.model)
    expected = fingerprint(
        study.seed, data_fingerprint(study.task), study.task.transfer_rows, weights_fingerprint(source),
        study.augment.fit_epochs,
    )  # fmt: skip
    with run.lock("masked_lm"):
        result = read_result(run.masked_lm, expected)
        if result is not None:
            return result
        from transformers import AutoModelForMaskedLM

        start = time.perf_counter()
        pl.seed_everything(study.seed, verbose=False)
        tokenizer = load_tokenizer(study)
        try:
            model = AutoModelForMaskedLM.from_pretrained(source, dtype=torch.float32)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"teacher.model: {study.teacher.model} gives no masked language model: {str(error).splitlines()[0]}"
            ) from error
        splits = load_task(study.task).splits
        train, dev = (_plain_texts(splits[name]) for name in ("train", "dev"))
        train += load_transfer(study.task)
        tokens = {
            name: tokenize(tokenizer, rows, study.task.max_length) for name, rows in (("train", train), ("dev", dev))
        }
        loaders = {
            name: make_loader(data, _BATCH_SIZE, shuffle=name == "train", seed=study.seed)
            for name, data in tokens.items()
        }
        module = _Fitting(model.train(), tokenizer, len(loaders["train"]) * study.augment.fit_epochs, study.seed)
        seen: list[float] = []

        def keep(metrics: Any) -> None:
            seen.append(metrics["dev_accuracy"])
            report(metrics)

        fit(module, loaders["train"], loaders["dev"], study.augment.fit_epochs, [EpochReport(keep)])
        result = {
            "fingerprint": expected,
            "dev_accuracy": seen[-1],
            "commonest_accuracy": _commonest(tokens["train"].tokens, tokens["dev"].tokens, tokenizer.all_special_ids),
            "seconds": time.perf_counter() - start,
        }
        with atomic_folder(run.masked_lm) as folder:
            model.eval().save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            write_result(folder, study, result)
    return result


def _plain_texts(rows: Rows) -> Rows:
    """Every text once, pairs apart."""
    texts = list(dict.fromkeys([*rows.texts, *(rows.pairs or ())]))
    return Rows(texts, [UNLABELLED] * len(texts))


def _commonest(train: np.ndarray, dev: np.ndarray, special: list[int]) -> float:
    """The share of dev's pieces that are the commonest one of train."""
    counts = Counter(train[~np.isin(train, special)].tolist())
    return float((dev[~np.isin(dev, special)] == counts.most_common(1)[0][0]).mean())
