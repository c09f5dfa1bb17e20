"""What of a feature store fits a limit on disk."""

import logging

import numpy as np

from nni_bertnas.config import FeaturesSettings
from nni_bertnas.errors import PhaseError

_SUBSET_SEED = 20
_log = logging.getLogger(__name__)


def rows_within(config: FeaturesSettings, token_size: int, lengths: np.ndarray, dev_tokens: int) -> np.ndarray:
    """Which rows of train have their hidden states stored: all, a random part that is always the same, or none.

    Args:
        config: The limit, and what is done beyond it.
        token_size: Bytes of a word piece.
        lengths: Word pieces of every row of train, `(num_rows,)`.
        dev_tokens: Of all of dev, which is stored whole.

    Returns:
        `(num_rows,)`, bool.

    Raises:
        PhaseError: The limit is too low for anything.
    """
    everything: np.ndarray = np.ones(len(lengths), bool)
    if config.max_gigabytes is None:
        return everything
    tokens = int(config.max_gigabytes * 1e9 / token_size) - dev_tokens
    if lengths.sum() <= tokens:
        return everything
    order = np.random.default_rng(_SUBSET_SEED).permutation(len(lengths))
    count = int(np.searchsorted(np.cumsum(lengths[order]), max(0, tokens), side="right"))
    whole = (int(lengths.sum()) + dev_tokens) * token_size / 1e9
    if config.over_budget == "live":
        _log.warning(
            "the features of all rows would take %.2f GB, over features.max_gigabytes %g: those of train are not "
            "stored, the teacher runs live", whole, config.max_gigabytes,
        )  # fmt: skip
        return ~everything
    if count < 16:
        least = (dev_tokens + np.sort(lengths)[-16:].sum()) * token_size / 1e9
        raise PhaseError(
            f"features.max_gigabytes {config.max_gigabytes:g} is too little for dev and 16 rows of train; set it to "
            f"{least:.2g} or more, or over_budget to live"
        )
    _log.warning(
        "the features of all rows would take %.2f GB, over features.max_gigabytes %g: those of %d of %d rows of train "
        "are stored, always the same", whole, config.max_gigabytes, count, len(lengths),
    )  # fmt: skip
    stored = ~everything
    stored[order[:count]] = True
    return stored
