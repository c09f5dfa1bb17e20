"""Kinds of values that fields of a study have."""

import os
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field

STRICT = ConfigDict(extra="forbid", strict=True)

Positive = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0, le=1)]
Weight = Annotated[float, Field(ge=0)]
PathText = Annotated[str, AfterValidator(os.path.expanduser)]  # ~ is the user's home
# YAML 1.1 reads a bare `off` as false.
Switch = Annotated[
    Literal["off", "offline", "online"], BeforeValidator(lambda value: "off" if value is False else value)
]


def check_weights(losses: dict[str, float]) -> None:
    """Whether any loss counts.

    Raises:
        ValueError: None does.
    """
    if not any(losses.values()):
        raise ValueError("losses have weights of 0 alone; nothing would be learnt")
