"""Reading recipes from TOML."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bench.core.schema import THE_FILE, explain_validation
from exporter.errors import RecipeError
from exporter.recipes.recipe import Recipe, numbered

MAX_RECIPE_BYTES = 1 << 20


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe.

    Args:
        path: a TOML file.
        overrides: `table.key=value` texts that replace values; a stage is named by its position or
            name, as in `stage.finetune.epochs=5`.

    Raises:
        RecipeError: with file, key and what to do.
    """
    try:
        if path.stat().st_size > MAX_RECIPE_BYTES:
            raise RecipeError(path, "is larger than a recipe can be", "check the path")
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(path, f"cannot be read ({error.strerror})", "check the path") from error
    except (ValueError, RecursionError) as error:  # also for numbers of thousands of digits
        raise RecipeError(path, f"is no TOML ({error})", "mend the line") from error
    for override in overrides:
        _apply_override(content, override)
    return recipe_from(content, path)


def recipe_from(content: Mapping[str, Any], place: object) -> Recipe:
    """Validate nested tables.

    Raises:
        RecipeError: with `place`, key and what to do.
    """
    try:
        # By way of JSON, whose arrays may become tuples where Python's strict lists may not.
        return Recipe.model_validate_json(json.dumps(content, default=str))
    except ValidationError as error:
        key, cause, fix = explain_validation(error, Recipe)
        raise RecipeError(place if key == THE_FILE else f"{place}: {key}", cause, fix) from error
    except RecursionError as error:
        raise RecipeError(place, "its tables are nested too deeply", "flatten them") from error


def _apply_override(content: dict[str, Any], override: str) -> None:
    """Replace one value in nested tables, making tables on the way where there are none."""
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise RecipeError(f"--set {override}", "is no table.key=value", "write such as stage.0.epochs=3")
    table: Any = content
    for part in parts[:-1]:
        table = _enter(table, part, override)
    if not isinstance(table, dict):
        raise RecipeError(f"--set {override}", f"{parts[-2]!r} is no table", "check the key")
    table[parts[-1]] = _toml_value(text.strip())


def _enter(table: Any, part: str, override: str) -> Any:
    if isinstance(table, dict):
        return table.setdefault(part, {})
    if isinstance(table, list):
        stages = [t if isinstance(t, dict) else {} for t in table]
        names = numbered([(t.get("name"), str(t.get("kind"))) for t in stages])
        if part.isdecimal() and int(part) < len(table):
            return table[int(part)]
        if part in names:
            return table[names.index(part)]
        raise RecipeError(
            f"--set {override}", f"there is no stage {part!r}", f"there are: {', '.join(map(str, names))}"
        )
    raise RecipeError(f"--set {override}", f"{part!r} lies in no table", "check the key")


def _toml_value(text: str) -> Any:
    """A TOML value, or the text itself where it is none: `--set name=test` needs no quotes."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text
