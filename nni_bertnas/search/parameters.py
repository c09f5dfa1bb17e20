"""A space as NNI's search space of parameters, where every NNI trial is one architecture."""

from collections.abc import Mapping
from typing import Any

from nni_bertnas.errors import ConfigError
from search_space.cells import Architecture, spell_choice
from search_space.listing import Space


def nni_search_space(space: Space) -> dict[str, dict[str, Any]]:
    """NNI's search space of the architectures of a space."""
    return {
        label: {"_type": "choice", "_value": [spell_choice(one) for one in options]}
        for label, options in space.choices.items()
    }


def read_parameters(space: Space, parameters: Mapping[str, Any]) -> Architecture:
    """The architecture that an NNI trial's parameters stand for.

    Raises:
        ConfigError: They are not decisions of the space.
    """
    options = {label: {spell_choice(one): one for one in some} for label, some in space.choices.items()}
    wrong = sorted(set(options) ^ set(parameters))
    # In lists, as a value that was written as a list has no hash.
    wrong += [f"{label}: {parameters[label]!r}" for label in options
              if label in parameters and parameters[label] not in list(options[label])]  # fmt: skip
    if wrong:
        raise ConfigError(
            f"searchSpace does not match the study's space {space.name} at depth {space.depth} ({', '.join(wrong)}); "
            f"write it anew with: bertnas space STUDY --depth {space.depth} --nni FILE"
        )
    return space.canonical({label: options[label][parameters[label]] for label in options})
