"""The project's modules and their imports, read from the source without executing it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("bench", "exporter", "models")


class When(Enum):
    """When an import happens."""

    LOADED = "when the module is loaded"
    LOCAL = "in a function"
    TYPES = "for types only"


@dataclass(frozen=True)
class Module:
    """One file of source."""

    name: str
    path: Path
    tree: ast.Module

    @property
    def package(self) -> str:
        """The package that a relative import with one dot refers to."""
        return self.name if self.path.name == "__init__.py" else self.name.rpartition(".")[0]


@dataclass(frozen=True)
class Import:
    """An import of one module of the project by another."""

    source: str
    target: str
    line: int
    when: When


def modules(root: Path = ROOT, packages: tuple[str, ...] = PACKAGES) -> dict[str, Module]:
    """Read the modules of some packages, by dotted name. The templates of `edgeproof new` are left out."""
    paths = (path for package in packages for path in sorted((root / package).rglob("*.py")))
    found = [_read(root, path) for path in paths if "templates" not in path.parts]
    return {module.name: module for module in found}


def _read(root: Path, path: Path) -> Module:
    parts = path.relative_to(root).with_suffix("").parts
    name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    return Module(name, path, ast.parse(path.read_text(encoding="utf-8"), filename=str(path)))


def imports(module: Module, known: dict[str, Module]) -> Iterator[Import]:
    """Yield the imports of known modules. A module that a statement names twice is yielded once."""
    for node, when in _import_nodes(module.tree, When.LOADED):
        for target in dict.fromkeys(_targets(node, module, known)):
            if target != module.name:
                yield Import(module.name, target, node.lineno, when)


def _import_nodes(node: ast.AST, when: When) -> Iterator[tuple[ast.Import | ast.ImportFrom, When]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, when
        elif isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            for statement in child.body:
                yield from _import_nodes(ast.Module([statement], []), When.TYPES)
            for statement in child.orelse:
                yield from _import_nodes(ast.Module([statement], []), when)
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) and when is When.LOADED:
            yield from _import_nodes(child, When.LOCAL)
        else:
            yield from _import_nodes(child, when)


def _targets(node: ast.Import | ast.ImportFrom, module: Module, known: dict[str, Module]) -> Iterator[str]:
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    else:
        base = imported_from(node, module)
        names = [f"{base}.{alias.name}" for alias in node.names]
    for name in names:
        found = nearest(name, known)
        if found:
            yield found


def imported_from(node: ast.ImportFrom, module: Module) -> str:
    """Return the absolute name of the module in `from ... import`; leading dots are resolved."""
    if not node.level:
        return node.module or ""
    parts = module.package.split(".")
    return ".".join([*parts[: len(parts) - node.level + 1], *([node.module] if node.module else [])])


def nearest(name: str, known: dict[str, Module]) -> str:
    """Return the longest leading part of a dotted name that is a known module; empty if there is none."""
    while name and name not in known:
        name = name.rpartition(".")[0]
    return name
