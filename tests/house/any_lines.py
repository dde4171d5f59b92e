"""List the lines of source that use the type `Any`: `python -m tests.house.any_lines`.

A line counts if a type on it names `Any`: in a signature, at a variable, in an alias or in a cast. Comments
and docstrings do not count. Lines at the boundary to untyped libraries are listed separately, because the
library itself returns or accepts `Any` there.

A mapping to `Any`, for example `dict[str, Any]`, crosses a module boundary if it is in the signature of a
public function or method or is the type of a public attribute, under its own name or an alias. Only code
that reads or writes JSON or TOML may have such mappings.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tests.house.modules import ROOT, Module, imported_from, modules

# Dotted names of modules, classes and functions that may use `Any`, each with the reason.
UNTYPED = {
    "bench.core.command._wrong": "Typer has no public name for the errors of a command line",
    "exporter.graphs.attributes": "onnx reads an attribute of any type",
    "exporter.quantization.ort_quantizer": "onnxruntime.quantization has no types",
    "exporter.sources.checkpoint": "torch.load returns what a file holds",
    "exporter.training.qat.operators": "onnx reads an attribute of any type",
    "exporter.training.qat.rounding": "the context of torch.autograd.Function has no type",
    "exporter.training.shrinking.groups": "torch_pruning has no types",
}
# Dotted names whose mappings to `Any` are JSON or TOML content, just read or about to be written.
EDGES = {
    "exporter.recipes.reading": "the content of a recipe, before it is checked",
    "exporter.recipes.schema": "JSON Schema",
    "exporter.sources.lookup": "keyword arguments that a recipe gives to a factory",
}
MAPPINGS = {"dict", "Mapping", "MutableMapping", "defaultdict", "OrderedDict", "Dict"}
SERIES = {"list", "tuple", "set", "frozenset", "Sequence", "Iterable", "Iterator", "Collection"}


@dataclass(frozen=True, order=True)
class AnyLine:
    """A line with a type that is `Any`, or with an alias of a mapping to `Any`.

    Attributes:
        path: Path of the file, relative to the root.
        line: Line number.
        scope: Dotted name of the function, class or variable that the type belongs to.
        names_any: Whether the line itself names `Any`.
        mapping: Whether the type is, or contains, a mapping to `Any`.
        crosses: Whether the mapping crosses a module boundary.
    """

    path: str
    line: int
    scope: str
    names_any: bool
    mapping: bool
    crosses: bool


def any_lines(known: Mapping[str, Module], root: Path = ROOT) -> list[AnyLine]:
    """Find the lines with `Any` in some modules, sorted by path and line."""
    aliases = mapping_aliases(known)
    found: dict[tuple[str, int], AnyLine] = {}
    for module in known.values():
        path = str(module.path.relative_to(root))
        names = {alias.rpartition(".")[2] for alias in aliases if alias.rpartition(".")[0] == module.name}
        for scope, kind, public in _types(module.tree, module.name, public=True):
            for line, names_any, mapping in _anys(kind, names):
                before = found.get((path, line), AnyLine(path, line, scope, False, False, False))
                found[path, line] = replace(
                    before,
                    names_any=before.names_any or names_any,
                    mapping=before.mapping or mapping,
                    crosses=before.crosses or (mapping and public),
                )
    return sorted(found.values())


def mapping_aliases(known: Mapping[str, Module]) -> set[str]:
    """Find the dotted names of all aliases of mappings to `Any`, including imported aliases."""
    found = {
        f"{module.name}.{target.id}"
        for module in known.values()
        for statement in module.tree.body
        if isinstance(statement, ast.Assign) and any(map(_is_mapping, ast.walk(statement.value)))
        for target in statement.targets
        if isinstance(target, ast.Name)
    }
    while more := set(_imported(known, found)) - found:
        found |= more
    return found


def _imported(known: Mapping[str, Module], names: set[str]) -> Iterator[str]:
    """Yield the dotted names that `names` have in the modules that import them."""
    for module in known.values():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    if f"{imported_from(node, module)}.{alias.name}" in names:
                        yield f"{module.name}.{alias.asname or alias.name}"


def _types(node: ast.AST, scope: str, *, public: bool) -> Iterator[tuple[str, ast.expr, bool]]:
    """Yield each expression that may be a type, its scope, and whether it is visible to other modules.

    Expressions in a function's body are not visible to other modules, except annotations of attributes.
    """
    for child in ast.iter_child_nodes(node):
        match child:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                inner, outside = f"{scope}.{name}", public and is_public(name)
                for one in _signature(child):
                    yield inner, one, outside
                yield from _types(ast.Module(child.body, []), inner, public=False)
            case ast.ClassDef(name=name):
                yield from _types(child, f"{scope}.{name}", public=public and is_public(name))
            case ast.AnnAssign(target=ast.Name(id=name) | ast.Attribute(attr=name)):
                attribute = isinstance(child.target, ast.Attribute)
                yield f"{scope}.{name}", child.annotation, (public or attribute) and is_public(name)
                yield from _types(
                    ast.Module([ast.Expr(child.value)] if child.value else [], []), scope, public=False
                )
            case ast.Assign(targets=[ast.Name(id=name)]):
                yield f"{scope}.{name}", child.value, False
            case ast.expr():
                yield scope, child, False
            case _:
                yield from _types(child, scope, public=public)


def _signature(function: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[ast.expr]:
    given = function.args
    arguments = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
    kinds = [argument.annotation for argument in arguments if argument] + [function.returns]
    yield from (kind for kind in kinds if kind)


def is_public(name: str) -> bool:
    """Return whether other modules may use a name. Special methods (`__init__`) are public."""
    return not name.startswith("_") or name.endswith("__")


def _anys(kind: ast.expr, aliases: set[str]) -> Iterator[tuple[int, bool, bool]]:
    """Yield line number, whether the line names `Any`, and whether it has a mapping to `Any`."""
    for node in ast.walk(kind):
        if _is_mapping(node) or (isinstance(node, ast.Name) and node.id in aliases):
            yield node.lineno, False, True
        elif _is_any(node):
            yield node.lineno, True, False


def _is_any(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id == "Any"


def _is_mapping(node: ast.AST) -> bool:
    match node:
        case ast.Subscript(value=ast.Name(id=name), slice=ast.Tuple(elts=[_, value])):
            return name in MAPPINGS and _holds_any(value)
        case _:
            return False


def _holds_any(kind: ast.expr) -> bool:
    """Return whether a type is `Any` or a built-in container of it. Other generic classes do not count."""
    match kind:
        case ast.Subscript(value=ast.Name(id=name), slice=inner) if name in MAPPINGS | SERIES:
            return _holds_any(inner)
        case ast.Tuple(elts=kinds):
            return any(map(_holds_any, kinds))
        case ast.BinOp(left=left, right=right):
            return _holds_any(left) or _holds_any(right)
        case _:
            return _is_any(kind)


def within(scope: str, listed: Iterable[str]) -> str | None:
    """Return the first entry of `listed` that a scope equals or is inside of; None if there is none."""
    return next((name for name in listed if f"{scope}.".startswith(f"{name}.")), None)


def unused(found: Sequence[AnyLine]) -> list[str]:
    """Return the entries of `UNTYPED` and `EDGES` that no line needs."""
    untyped = {within(line.scope, UNTYPED) for line in found if line.names_any}
    edges = {within(line.scope, EDGES) for line in found if line.crosses}
    return sorted((UNTYPED.keys() - untyped) | (EDGES.keys() - edges))


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the lines and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument(
        "--max", type=int, help="fail (exit code 1) above this many lines outside the boundary"
    )
    parser.add_argument(
        "--max-crossing", type=int, help="fail above this many mappings that cross a module boundary"
    )
    limits = parser.parse_args(arguments)
    found = any_lines(modules())
    anys = [line for line in found if line.names_any]
    outside = [line for line in anys if not within(line.scope, UNTYPED)]
    crossing = [line for line in found if line.crosses and not within(line.scope, [*UNTYPED, *EDGES])]
    for title, lines in (
        ("`Any` at the boundary to untyped libraries", [line for line in anys if line not in outside]),
        ("`Any` elsewhere", outside),
        ("mappings to `Any` that cross a module boundary, except JSON and TOML content", crossing),
        ("entries of UNTYPED and EDGES that no line needs", unused(found)),
    ):
        print(f"{title}: {len(lines)}", *(f"  {_shown(line)}" for line in lines), sep="\n")
    above = [
        limit is not None and len(lines) > limit
        for lines, limit in ((outside, limits.max), (crossing, limits.max_crossing))
    ]
    return int(any(above))


def _shown(line: AnyLine | str) -> str:
    if isinstance(line, str):
        return line
    return f"{line.path}:{line.line}  {line.scope}{'  (a mapping)' * line.mapping}"


if __name__ == "__main__":
    sys.exit(main())
