"""Read recipes from TOML."""

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
        overrides: `table.key=value` texts that replace values. A stage is named by its position or its
            name, for example `stage.finetune.epochs=5`.

    Raises:
        RecipeError: the file cannot be read, or a key or value is invalid; the error names file and key.
    """
    try:
        if path.stat().st_size > MAX_RECIPE_BYTES:
            raise RecipeError(
                path, f"is larger than the limit of {MAX_RECIPE_BYTES:,} bytes", "check the path"
            )
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(path, f"cannot be read ({error.strerror})", "check the path") from error
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits: ValueError
        raise RecipeError(path, f"is not valid TOML ({error})", "correct the file") from error
    for override in overrides:
        _apply_override(content, override)
    return recipe_from(content, path)


def recipe_from(content: Mapping[str, Any], place: object) -> Recipe:
    """Validate the nested tables of a recipe.

    Args:
        content: the tables, as TOML or JSON readers return them.
        place: name of the recipe in errors.

    Raises:
        RecipeError: a key or value is invalid; the error names `place` and the key.
    """
    try:
        # Strict mode converts JSON arrays to tuples, but not Python lists: hence the detour through JSON.
        return Recipe.model_validate_json(json.dumps(content, default=str))
    except ValidationError as error:
        key, cause, fix = explain_validation(error, Recipe)
        raise RecipeError(place if key == THE_FILE else f"{place}: {key}", cause, fix) from error
    except RecursionError as error:
        raise RecipeError(place, "its tables are nested too deeply", "remove levels of nesting") from error


def _apply_override(content: dict[str, Any], override: str) -> None:
    """Replace one value in nested tables; create missing tables on the way."""
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise RecipeError(
            f"--set {override}",
            "does not have the form table.key=value",
            "write for example stage.0.epochs=3",
        )
    table: Any = content
    for part in parts[:-1]:
        table = _enter(table, part, override)
    if not isinstance(table, dict):
        raise RecipeError(f"--set {override}", f"{parts[-2]!r} is not a table", "check the key")
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
            f"--set {override}",
            f"there is no stage {part!r}",
            f"choose one of: {', '.join(map(str, names))}",
        )
    raise RecipeError(f"--set {override}", f"{part!r} is not inside a table", "check the key")


def _toml_value(text: str) -> Any:
    """Parse a TOML value; return the text itself if it is not TOML: `--set name=test` needs no quotes."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text
