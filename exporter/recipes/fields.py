"""Types of recipe keys that several tables share."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated

from pydantic import AfterValidator, Field, JsonValue

from bench.core.schema import FrozenModel

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]


Reference = Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$")]


Fraction = Annotated[float, Field(gt=0.0, lt=1.0)]


def _finite(arguments: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """Refuse NaN and infinity: arguments are hashed and stored as JSON, which cannot represent them."""
    json.dumps(arguments, allow_nan=False)
    return arguments


def positive(values: tuple[float, ...]) -> tuple[float, ...]:
    """Refuse numbers that are zero or negative."""
    if min(values) <= 0:
        raise ValueError("must be above 0")
    return values


Arguments = Annotated[dict[str, JsonValue], AfterValidator(_finite)]


Axis = Annotated[str, Field(pattern=r"^[1-9]$")]


Channels = Annotated[tuple[Annotated[float, Field(ge=0.0, le=1e6)], ...], Field(min_length=1)]


def refuse_without_effect(config: FrozenModel, keys: Sequence[str], condition: str) -> None:
    """Refuse keys that have no effect.

    Args:
        config: the table to check.
        keys: names of keys in the table that have no effect.
        condition: the reason, as text that follows "KEY has no effect" in the error.

    Raises:
        ValueError: a key has a value other than its default; the error names the first such key.
    """
    for key in keys:
        if getattr(config, key) != type(config).model_fields[key].default:
            raise ValueError(f"{key} has no effect {condition}; leave it out")
