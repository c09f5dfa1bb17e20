"""The error of wrong input; the package's own where this runs inside of it."""

try:
    from nni_bertnas.errors import ConfigError
except ImportError:  # this folder's copy beside an exported model

    class ConfigError(Exception):  # type: ignore[no-redef]
        """Settings are wrong. The message names the remedy."""


__all__ = ["ConfigError"]
