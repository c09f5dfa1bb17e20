"""Ready choices of a student's size, one line in a study."""

from collections.abc import Mapping
from typing import Any

from nni_bertnas.errors import ConfigError

# What each says of a study's sections. Docs, "Profiles", has what they come to.
PROFILES: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "tiny": {
        "student": {"hidden_size": 128, "embedding_size": 64},
        "cell": {"depths": [1]},
        "supernet": {"budget": {"min_speedup": 20.0}},
    },
    "small": {
        "student": {"hidden_size": 192, "embedding_size": 128},
        "cell": {"depths": [1, 2]},
        "supernet": {"budget": {"min_speedup": 10.0}},
    },
    "base": {
        "student": {"hidden_size": 256, "embedding_size": 192},
        "cell": {"depths": [1, 2, 3]},
        "supernet": {"budget": {"min_speedup": 5.0}},
    },
}


def apply_profile(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A study's fields with what its `profile` says, where it does not say otherwise itself, and without that key.

    Raises:
        ConfigError: There is no such profile.
    """
    fields = dict(raw)
    name = fields.pop("profile", None)
    if name is None:
        return fields
    if not isinstance(name, str) or name not in PROFILES:
        raise ConfigError(f"profile: must be {', '.join(PROFILES)}, got {name!r}")
    for section, values in PROFILES[name].items():
        own = fields.get(section)
        if own is None or isinstance(own, Mapping):
            fields[section] = {**values, **(own or {})}
    return fields
