"""The exceptions of the library; whatever else is raised is a bug."""


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
