"""How edgeproof reads structured files: strictly, and with one clear line when something is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from pydantic import BaseModel, ConfigDict, ValidationError


class FrozenModel(BaseModel):
    """A value object read from a file: immutable, strictly typed, no unknown keys, no NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def explain_validation(error: ValidationError, model: type[BaseModel]) -> tuple[str, str, str]:
    """Place, cause and fix of the first thing that pydantic found wrong."""
    first = error.errors(include_url=False)[0]
    location = [str(part) for part in first["loc"]]
    place = ".".join(location) or "the file"
    if first["type"] == "extra_forbidden":
        known = _known_keys(model, location[:-1])
        return place, "unknown key", f"known here: {', '.join(known)}" if known else "remove it"
    if first["type"] == "missing":
        return place, "is missing", "add it"
    given = repr(first.get("input"))
    given = given if len(given) <= 60 else given[:59] + "…"
    message = first["msg"].removeprefix("Value error, ")
    return place, f"{given} is refused", message[:1].lower() + message[1:]


def _known_keys(model: type[BaseModel], location: Sequence[str]) -> list[str]:
    """The keys that are allowed at a location of nested models; empty where it leads out of them."""
    for part in location:
        candidates: list[object] = []
        if part in model.model_fields:
            annotation: object = model.model_fields[part].annotation
            stack = [annotation]
            while stack:
                item = stack.pop()
                candidates.append(item)
                stack.extend(get_args(item))
        found = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        if len(found) == 1:
            model = found[0]
        elif len(found) > 1 or not part.isdigit():
            return []
    return sorted(model.model_fields)
