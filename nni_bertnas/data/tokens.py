"""Texts as word pieces."""

import itertools
import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from nni_bertnas.data.batches import TokenDataset
from nni_bertnas.data.rows import Rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TOKENIZER_ROWS = 10_000  # at a time
_log = logging.getLogger(__name__)


def tokenize(tokenizer: "PreTrainedTokenizerBase", rows: Rows, max_length: int) -> "TokenDataset":
    """The rows as word pieces, special tokens included, cut to `max_length`; logs how many were cut.

    Of a pair, the longer text is cut first.
    """
    texts = [rows.texts] if rows.pairs is None else [rows.texts, rows.pairs]
    parts: list[tuple[np.ndarray, ...]] = []  # flat, as an array per row takes more than what it holds
    cut = 0
    for first in range(0, len(rows), _TOKENIZER_ROWS):  # a tokenizer's output takes kilobytes a row
        encoded = tokenizer(
            *(side[first : first + _TOKENIZER_ROWS] for side in texts),
            truncation="longest_first",
            max_length=max_length,
            return_attention_mask=False,
            return_token_type_ids=True,
        )
        cut += count_cut(encoded, max_length)
        ids, types = encoded["input_ids"], encoded["token_type_ids"]
        parts.append((_flat(ids, np.int32), np.array([len(row) for row in ids]), _flat(types, np.uint8)))
    if cut:
        _log.warning("%d of %d texts were cut to task.max_length = %d word pieces", cut, len(rows), max_length)
    tokens, lengths, token_types = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return TokenDataset(tokens, lengths, rows.labels, tokenizer.pad_token_id or 0, token_types=token_types)


def _flat(rows: Iterable[Iterable[int]], dtype: Any) -> np.ndarray:
    return np.fromiter(itertools.chain.from_iterable(rows), dtype)


def count_cut(encoded: Any, max_length: int) -> int:
    """How many rows of a tokenizer's output were cut; a slow tokenizer counts those that are just full too."""
    if encoded.encodings:
        return sum(bool(encoding.overflowing) for encoding in encoded.encodings)
    return sum(len(ids) == max_length for ids in encoded["input_ids"])
