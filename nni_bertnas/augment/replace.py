"""Augmentation of rows, after TinyBERT (Jiao et al. 2020, arXiv 1909.10351, Algorithm 1).

A word that is one piece to the masked language model may be replaced by one of the model's most probable words in its
place; a split word by one of its nearest word vectors. Stop words and what is not a word stay. What a word may be
replaced by comes from the unchanged text, once for all copies, as in the authors' code; their algorithm as printed
masks a text in which earlier words are already replaced.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers import AutoModelForMaskedLM

from nni_bertnas.augment.words import Neighbours, replaceable, whole_words
from nni_bertnas.config import AugmentSettings
from nni_bertnas.data.loading import load_checked, load_tokenizer_of
from nni_bertnas.data.rows import Rows
from nni_bertnas.errors import ConfigError
from nni_bertnas.machine import best_device
from nni_bertnas.student.start import places
from nni_bertnas.training.masked_lm import masked_logits

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_WINDOW, _OVERLAP = 128, 32  # word pieces of context for the masked language model
_BATCH_ROWS = 64  # masked copies at a time
_WORD = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)*")


@dataclass(frozen=True)
class Slot:
    """A word of a text that may be replaced.

    Attributes:
        start: First character.
        end: After the last.
        words: What it may be replaced by, likeliest first.
    """

    start: int
    end: int
    words: tuple[str, ...]


def _like(word: str, model: str) -> str:
    """`word` with the capital letters of `model`."""
    if model.isupper():
        return word.upper()
    return word[:1].upper() + word[1:] if model[:1].isupper() else word


class Replacements:
    """What each word of a text may be replaced by.

    Args:
        model: Masked language model.
        tokenizer: Its own; a fast one, as words are found by their characters.
        neighbours: For the words that the tokenizer splits.
        top_k: Words per word.

    Raises:
        ConfigError: The tokenizer is slow or has no mask.
    """

    def __init__(
        self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", neighbours: Neighbours, top_k: int
    ) -> None:
        if not tokenizer.is_fast or tokenizer.mask_token_id is None:
            raise ConfigError("augment.masked_lm: its tokenizer must be a fast one with a mask token")
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.neighbours = neighbours
        self.top_k = top_k
        self.words = whole_words(tokenizer)
        numbers = torch.zeros(model.config.vocab_size, dtype=torch.bool)
        numbers[list(self.words)] = True
        self._barred = ~numbers
        self.window = min(_WINDOW, tokenizer.model_max_length, places(model))

    def slots(self, texts: Sequence[str]) -> list[list[Slot]]:
        """The replaceable words of every text, in their order; each masked alone, in a window of its context.

        Texts may be of any length.
        """
        encoded = self.tokenizer(
            list(texts), truncation=True, max_length=self.window, stride=min(_OVERLAP, self.window // 4),
            return_overflowing_tokens=True, return_offsets_mapping=True, return_attention_mask=False,
            return_token_type_ids=False,
        )  # fmt: skip
        found: dict[tuple[int, int], Slot] = {}
        masked: list[tuple[int, int, int, int]] = []  # window, position, text, start of the word
        spans = [{match.start(): match for match in _WORD.finditer(text)} for text in texts]
        for window, text in enumerate(encoded["overflow_to_sample_mapping"]):
            starts: dict[int, int] = {}  # first character of a piece -> its position
            ends: dict[int, int] = {}
            for position, (start, end) in enumerate(encoded["offset_mapping"][window]):
                if end > start:
                    start += texts[text][start] == " "  # byte-level BPE counts the space before
                    starts[start], ends[end] = position, position
            for start, match in spans[text].items():
                first, last = starts.get(start), ends.get(match.end())
                if first is None or last is None or (text, start) in found or not replaceable(match[0]):
                    continue
                words = () if first == last else self.neighbours.nearest(match[0], self.top_k)
                found[text, start] = Slot(start, match.end(), tuple(_like(word, match[0]) for word in words))
                if first == last:
                    masked.append((window, first, text, start))
        predicted = self._predict(encoded["input_ids"], masked)
        for (_, _, text, start), likely in zip(masked, predicted, strict=True):
            slot = found[text, start]
            word = texts[text][start : slot.end]
            others = dict.fromkeys(_like(other, word) for other in likely if other.lower() != word.lower())
            found[text, start] = Slot(start, slot.end, tuple(others)[: self.top_k])
        slots: list[list[Slot]] = [[] for _ in texts]
        for (text, _), slot in sorted(found.items()):
            if slot.words:
                slots[text].append(slot)
        return slots

    @torch.inference_mode()
    def _predict(self, windows: list[list[int]], masked: list[tuple[int, int, int, int]]) -> list[list[str]]:
        """For every (window, position, …), the words that the model finds likeliest there."""
        answers: list[list[str]] = [[] for _ in masked]
        order = sorted(range(len(masked)), key=lambda number: len(windows[masked[number][0]]))
        device, pad = best_device(), self.tokenizer.pad_token_id or 0
        self.model.to(device)
        barred = self._barred.to(device)
        for start in range(0, len(order), _BATCH_ROWS):
            chunk = order[start : start + _BATCH_ROWS]
            longest = len(windows[masked[chunk[-1]][0]])
            inputs = torch.full((len(chunk), longest), pad)
            hidden = torch.zeros(len(chunk), longest, dtype=torch.bool)
            mask = torch.zeros(len(chunk), longest, dtype=torch.long)
            for row, number in enumerate(chunk):
                window, position, *_ = masked[number]
                inputs[row, : len(windows[window])] = torch.tensor(windows[window])
                mask[row, : len(windows[window])] = 1
                inputs[row, position] = self.tokenizer.mask_token_id
                hidden[row, position] = True
            logits = masked_logits(self.model, inputs.to(device), mask.to(device), hidden.to(device))
            logits.masked_fill_(barred, -torch.inf)
            # Three more, as the word itself may be among them, in up to three spellings.
            best = logits.topk(min(self.top_k + 3, len(self.words))).indices.tolist()
            for number, words in zip(chunk, best, strict=True):
                answers[number] = [self.words[word] for word in words]
        return answers


def replace_words(
    text: str,
    slots: Sequence[Slot],
    probability: float,
    generator: np.random.Generator,
    chosen: dict[str, str] | None = None,
) -> str:
    """A copy of a text in which every slot's word is replaced with `probability`, all candidates alike.

    Args:
        text: The text.
        slots: Of the text.
        probability: Of a word to be replaced.
        generator: Of all random choices.
        chosen: What became of words so far, which holds for them here, too; what becomes of others is added.
    """
    parts, end = [], 0
    for slot in slots:
        word = text[slot.start : slot.end]
        known = None if chosen is None else chosen.get(word.lower())
        if known is None:
            known = slot.words[generator.integers(len(slot.words))] if generator.random() < probability else word
        if chosen is not None:
            chosen[word.lower()] = known
        if known.lower() != word.lower():
            parts += [text[end : slot.start], _like(known, word)]
            end = slot.end
    return "".join([*parts, text[end:]])


def augment_rows(
    rows: Rows, numbers: Sequence[int], replacements: Replacements, settings: AugmentSettings, seed: int
) -> Iterator[tuple[int, int, tuple[str, ...]]]:
    """New rows: number of the row they come from, of the copy, and their one or two texts, both augmented.

    A row's copies depend on the seed, its number and its texts alone; fewer copies are a part of more.

    Args:
        rows: Of train.
        numbers: Which of them.
        replacements: What words may be replaced by.
        settings: How many copies, and how they are made.
        seed: Of all random choices.
    """
    sides = [rows.texts] if rows.pairs is None else [rows.texts, rows.pairs]
    texts = list(dict.fromkeys(side[number] for number in numbers for side in sides))
    slots = dict(zip(texts, replacements.slots(texts), strict=True))
    for number in numbers:
        generator = np.random.default_rng((seed, number))
        own = [side[number] for side in sides]
        for copy in range(settings.copies):
            chosen: dict[str, str] | None = {} if settings.consistent and len(own) > 1 else None
            yield (
                number,
                copy,
                tuple(replace_words(text, slots[text], settings.probability, generator, chosen) for text in own),
            )


def load_masked_lm(source: str) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase"]:
    """A masked language model and its tokenizer.

    Args:
        source: Its folder or hub name.

    Raises:
        ConfigError: It cannot be loaded, or has no head of that kind.
    """
    what = f"augment.masked_lm: {source}"
    model = load_checked(AutoModelForMaskedLM, source, what)
    return model, load_tokenizer_of(source, what, model.config.vocab_size)
