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

CHUNK = 10_000  # rows; a tokenizer's output takes kilobytes a row
_log = logging.getLogger(__name__)


def tokenize(tokenizer: "PreTrainedTokenizerBase", rows: Rows, max_length: int) -> "TokenDataset":
    """The rows as word pieces, special tokens included, cut to `max_length`; logs how many were cut.

    Of a pair, the longer text is cut first.
    """
    return tokenize_stream(tokenizer, rows.chunks(CHUNK), max_length)


def tokenize_stream(tokenizer: "PreTrainedTokenizerBase", chunks: Iterable[Rows], max_length: int) -> "TokenDataset":
    """As :func:`tokenize` does; each chunk of rows is forgotten once it is word pieces, at least one of which is."""
    parts: list[tuple[np.ndarray, ...]] = []  # flat, as an array per row takes more than what it holds
    labels: list[float] = []
    cut = 0
    for rows in chunks:
        encoded = tokenizer(
            *([rows.texts] if rows.pairs is None else [rows.texts, rows.pairs]),
            truncation="longest_first",
            max_length=max_length,
            return_attention_mask=False,
            return_token_type_ids=True,
        )
        cut += count_cut(encoded, max_length)
        ids = encoded["input_ids"]
        flat, lengths = _flat(ids, np.int32), np.array([len(row) for row in ids])
        types = _flat(encoded["token_type_ids"], np.uint8)
        if rows.pairs is not None and not types.any():  # RoBERTa's kind tells pairs apart by the separator alone
            types = behind_separator(flat, lengths, tokenizer.sep_token_id)
        parts.append((flat, lengths, types))
        labels += rows.labels
    if cut:
        _log.warning("%d of %d texts were cut to task.max_length = %d word pieces", cut, len(labels), max_length)
    tokens, lengths, token_types = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return TokenDataset(tokens, lengths, labels, tokenizer.pad_token_id or 0, token_types=token_types)


def behind_separator(tokens: np.ndarray, lengths: np.ndarray, separator: int | None) -> np.ndarray:
    """Of every word piece 1 behind the first separator of its row, else 0: `(num_tokens,)`; 2 at one that doubles it.

    RoBERTa puts two between the texts of a pair; the other one is of neither, so that both texts are read alike. As a
    student finds the second text where there are no token types.

    Args:
        tokens: Of all rows, one after another, `(num_tokens,)`.
        lengths: `(num_rows,)`.
        separator: What ends a text; None: nothing does.
    """
    ends = tokens == separator
    before = np.cumsum(ends) - ends
    starts = np.cumsum(lengths) - lengths
    before -= np.repeat(before[starts], lengths)
    doubled = ends & (before == 1) & np.roll(ends, 1)
    return (before > 0).astype(np.uint8) + doubled


def _flat(rows: Iterable[Iterable[int]], dtype: Any) -> np.ndarray:
    return np.fromiter(itertools.chain.from_iterable(rows), dtype)


def count_cut(encoded: Any, max_length: int) -> int:
    """How many rows of a tokenizer's output were cut; a slow tokenizer counts those that are just full too."""
    if encoded.encodings:
        return sum(bool(encoding.overflowing) for encoding in encoded.encodings)
    return sum(len(ids) == max_length for ids in encoded["input_ids"])


def piece_lengths(tokenizer: "PreTrainedTokenizerBase", rows: Rows) -> np.ndarray:
    """Word pieces of every row, special ones included, uncut: `(num_rows,)`."""
    texts: list[Any] = [rows.texts] if rows.pairs is None else [rows.texts, rows.pairs]
    encoded = tokenizer(*texts, truncation=False, verbose=False, return_attention_mask=False)["input_ids"]
    return np.asarray([len(ids) for ids in encoded])
