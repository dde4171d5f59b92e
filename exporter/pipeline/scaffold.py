"""`edgeproof new`: a recipe to start from, with a model and data that build as they are."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

from bench.core.errors import UsageError
from bench.core.files import atomic_directory
from exporter.recipes import recipe_schema

RECIPE = "recipe.toml"
SCHEMA = "recipe.schema.json"
_FILES = (RECIPE, "model.py", "data.py")


def scaffold(folder: Path) -> Path:
    """Make `folder` with everything that a first build needs; it must not exist or be empty.

    Returns:
        The path of the recipe.

    Raises:
        UsageError: there is something at `folder` already.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(folder, "exists and is not empty", "name a new folder")
    templates = files("exporter.pipeline").joinpath("templates/new")
    with atomic_directory(folder.absolute()) as staging:
        for name in _FILES:
            text = templates.joinpath(name).read_text(encoding="utf-8")
            (staging / name).write_text(text, encoding="utf-8")
        (staging / SCHEMA).write_text(schema_text(), encoding="utf-8")
    return folder / RECIPE


def schema_text() -> str:
    """The published JSON Schema of recipes."""
    return json.dumps(recipe_schema(), indent=2) + "\n"
