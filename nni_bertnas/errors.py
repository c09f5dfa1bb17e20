"""The exceptions of the library; whatever else is raised is a bug."""

from collections.abc import Mapping
from typing import TypeVar

_Row = TypeVar("_Row")


class BertnasError(Exception):
    """Base of all errors a user can mend; shown without a traceback."""

    exit_code = 1


class ConfigError(BertnasError):
    """Settings are wrong. The message names every field and its remedy."""

    exit_code = 2


class PhaseError(BertnasError):
    """The input of a phase is missing or damaged. The message names the command that makes it."""


class CandidateError(BertnasError):
    """One candidate alone failed; the search goes on without it."""


def lookup(table: Mapping[str, _Row], name: str, field: str) -> _Row:
    """A table's row of a name.

    Args:
        table: Names -> rows.
        name: The one that is wanted.
        field: Dotted path of the setting that names it.

    Raises:
        ConfigError: There is none; the message lists the names there are.
    """
    if name not in table:
        raise ConfigError(f"{field}: must be one of {', '.join(table)}, got {name!r}")
    return table[name]
