"""`edgeproof new`: write an example recipe, with a model and data, that builds without changes."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

from bench.core.files import atomic_directory
from exporter.pipeline.destination import check_new_folder
from exporter.recipes import recipe_schema

RECIPE = "recipe.toml"
SCHEMA = "recipe.schema.json"
_FILES = (RECIPE, "model.py", "data.py")


def scaffold(folder: Path) -> Path:
    """Create a folder with everything that a first build needs.

    Args:
        folder: the folder to create; it may exist if it is empty.

    Returns:
        The path of the recipe.

    Raises:
        UsageError: `folder` is a file, or a folder that is not empty.
    """
    check_new_folder(folder)
    templates = files("exporter.pipeline").joinpath("templates/new")
    with atomic_directory(folder.absolute()) as staging:
        for name in _FILES:
            text = templates.joinpath(name).read_text(encoding="utf-8")
            (staging / name).write_text(text, encoding="utf-8")
        (staging / SCHEMA).write_text(schema_text(), encoding="utf-8")
    return folder / RECIPE


def schema_text() -> str:
    """The JSON Schema of recipes, as the text of the published file."""
    return json.dumps(recipe_schema(), indent=2) + "\n"
