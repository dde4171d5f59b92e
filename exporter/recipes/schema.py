"""The JSON Schema of recipes."""

from __future__ import annotations

from typing import Any

from exporter.recipes.recipe import Recipe


def recipe_schema() -> dict[str, Any]:
    """The JSON Schema of recipes (draft 2020-12)."""
    schema = Recipe.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
