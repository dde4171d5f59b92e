"""Imports: users import only public names, and `exporter` never imports the models."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

import bench
import exporter

ROOT = Path(exporter.__file__).parent.parent
MODULES = sorted(path for path in (ROOT / "exporter").rglob("*.py") if "templates" not in path.parts)
TEMPLATES = sorted((ROOT / "exporter" / "pipeline" / "templates" / "new").glob("*.py"))
USERS = [*sorted((ROOT / "models").rglob("*.py")), *TEMPLATES]


@pytest.mark.parametrize("path", USERS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_users_import_only_public_names(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert not {n.name.partition(".")[0] for n in node.names} & {"exporter", "bench"}
        elif isinstance(node, ast.ImportFrom) and node.module:
            package = node.module.partition(".")[0]
            if package in {"exporter", "bench"}:
                assert node.module == package, f"{path}: imports {node.module}"
                public = getattr({"exporter": exporter, "bench": bench}[package], "__all__", ())
                assert {name.name for name in node.names} <= set(public)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_exporter_never_imports_the_models(path):
    for node in ast.walk(ast.parse(path.read_text())):
        names = [n.name for n in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert "models" not in {name.partition(".")[0] for name in names}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_module_has_a_docstring(path):
    assert ast.get_docstring(ast.parse(path.read_text()))


@pytest.mark.parametrize(
    "name",
    [
        "graphs.rewrites",
        "quantization.calibration",
        "quantization.repair",
        "recipes",
        "training.loop",
        "training.qat",
        "training.stages",
    ],
)
def test_packages_list_their_public_names(name):
    package = importlib.import_module(f"exporter.{name}")
    assert all(hasattr(package, public) for public in package.__all__)
