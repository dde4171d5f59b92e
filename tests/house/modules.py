"""The project's modules and what each imports, read from the source and never executed."""

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
    TYPES = "for types alone"


@dataclass(frozen=True)
class Module:
    """One file of source."""

    name: str
    path: Path
    tree: ast.Module

    @property
    def package(self) -> str:
        """What a relative import with one dot starts from."""
        return self.name if self.path.name == "__init__.py" else self.name.rpartition(".")[0]


@dataclass(frozen=True)
class Import:
    """One module of the project imports another."""

    source: str
    target: str
    line: int
    when: When


def modules(root: Path = ROOT, packages: tuple[str, ...] = PACKAGES) -> dict[str, Module]:
    """The modules of some packages by their dotted names, without the templates of `edgeproof new`."""
    paths = (path for package in packages for path in sorted((root / package).rglob("*.py")))
    found = [_read(root, path) for path in paths if "templates" not in path.parts]
    return {module.name: module for module in found}


def _read(root: Path, path: Path) -> Module:
    parts = path.relative_to(root).with_suffix("").parts
    name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    return Module(name, path, ast.parse(path.read_text(encoding="utf-8"), filename=str(path)))


def imports(module: Module, known: dict[str, Module]) -> Iterator[Import]:
    """The imports of known modules, each statement's targets once."""
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
    """The absolute name of what `from ... import` names, whose dots go up from the module's package."""
    if not node.level:
        return node.module or ""
    parts = module.package.split(".")
    return ".".join([*parts[: len(parts) - node.level + 1], *([node.module] if node.module else [])])


def nearest(name: str, known: dict[str, Module]) -> str:
    """The longest leading part of a dotted name that is a module, or nothing."""
    while name and name not in known:
        name = name.rpartition(".")[0]
    return name
