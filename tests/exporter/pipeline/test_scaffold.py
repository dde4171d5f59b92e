"""`edgeproof new` writes an example that builds without changes."""

from __future__ import annotations

import ast
import json

import pytest

from bench.core.errors import UsageError
from exporter.pipeline.scaffold import scaffold, schema_text
from exporter.recipes import read_recipe
from exporter.sources.lookup import add_import_roots, find_factory
from exporter.sources.splits import check_splits


def test_the_folder_contains_everything_for_a_first_build(tmp_path):
    path = scaffold(tmp_path / "mine")
    assert path == tmp_path / "mine" / "recipe.toml"
    assert {entry.name for entry in path.parent.iterdir()} == {
        "recipe.toml",
        "model.py",
        "data.py",
        "recipe.schema.json",
    }
    assert (path.parent / "recipe.schema.json").read_text() == schema_text()
    assert json.loads(schema_text())["title"] == "Recipe"
    for name in ("model.py", "data.py"):
        assert ast.get_docstring(ast.parse((path.parent / name).read_text()))


def test_the_example_network_fits_the_example_data(tmp_path):
    from exporter.training.loop import check_classes

    recipe = read_recipe(scaffold(tmp_path / "mine"))
    add_import_roots(tmp_path / "mine")
    data = find_factory(recipe.data.factory, "x")(train=9, calibration=3, evaluation=6)
    module = find_factory(recipe.model.factory, "x")(**recipe.model.args)
    assert check_classes(module, check_splits(data, "data"), "model") == 3


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "mine").mkdir()
    assert scaffold(tmp_path / "mine").is_file()


@pytest.mark.parametrize("kind", ["file", "full"])
def test_nothing_is_overwritten(tmp_path, kind):
    place = tmp_path / "mine"
    if kind == "full":
        place.mkdir()
        (place / "work").write_text("mine")
    else:
        place.write_text("mine")
    with pytest.raises(UsageError, match="exists and is not empty; name a new folder"):
        scaffold(place)
    assert (place / "work" if kind == "full" else place).read_text() == "mine"
