"""Find private names of the project that tests use: `python -m tests.house.private_names`.

A test that uses private names breaks when the implementation changes. If a test cannot avoid a private
name, a comment on the same line or the line before must give the reason. The script finds imports of
private names, attributes, calls like `monkeypatch.setattr(thing, "_name")`, and dotted names in strings. It
ignores names that no file of the project defines and names that the test file itself defines.
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.house.modules import PACKAGES, ROOT, modules

IN_TEXT = re.compile(rf"\b(?:{'|'.join(PACKAGES)})(?:\.\w+)*(?:\.|(?:\.\w+)* import )(_[a-zA-Z]\w*)\b")
DIRECTIVE = re.compile(r"#\s*(?:noqa|type:|fmt:|pragma:)")
BY_NAME = {"setattr", "getattr", "delattr", "hasattr", "object"}


@dataclass(frozen=True, order=True)
class Use:
    """A use of a private name of the project in a test."""

    path: str
    line: int
    name: str


def is_private(name: str) -> bool:
    """Return whether a name is private to its module."""
    return name.startswith("_") and not name.startswith("__") and name != "_"


def private_names(root: Path = ROOT) -> set[str]:
    """Collect the private functions, classes, variables and attributes that the project defines."""
    return {name for module in modules(root).values() for name in defined(module.tree)}


def defined(tree: ast.Module) -> Iterator[str]:
    """Yield the private names that a file defines."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                found = name
            case ast.Name(id=name, ctx=ast.Store()):
                found = name
            case ast.Attribute(attr=name, value=ast.Name(id="self" | "cls"), ctx=ast.Store()):
                found = name
            case _:
                continue
        if is_private(found):
            yield found


def uses(path: Path, private: set[str], root: Path = ROOT) -> list[Use]:
    """Find the uses in one test file that no comment explains."""
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    ours = private - set(defined(tree))
    explained = commented(text)
    found = {
        Use(str(path.relative_to(root)), node.lineno, name)
        for statement, node, name in _named(tree)
        if name in ours
        and explained.isdisjoint({node.lineno, node.lineno - 1, statement.lineno, statement.lineno - 1})
    }
    return sorted(found)


def commented(text: str) -> set[int]:
    """Return the lines that have a comment, without directives to tools (`noqa`, `type:`)."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return {
        token.start[0]
        for token in tokens
        if token.type == tokenize.COMMENT and not DIRECTIVE.match(token.string)
    }


def _named(tree: ast.Module) -> Iterator[tuple[ast.stmt, ast.expr | ast.stmt, str]]:
    """Yield the innermost statement, the expression and the name of each use of a private name."""
    libraries = set(_libraries(tree))
    for statement in ast.walk(tree):
        if isinstance(statement, ast.ImportFrom):
            for alias in statement.names:
                if is_private(alias.name):
                    yield statement, statement, alias.name
        elif isinstance(statement, ast.stmt):
            for node in _expressions(statement):
                for name in _names(node, libraries):
                    yield statement, node, name


def _libraries(tree: ast.Module) -> Iterator[str]:
    """Yield the names under which a file imports modules from outside the project."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] not in PACKAGES:
                    yield alias.asname or alias.name.partition(".")[0]


def _expressions(statement: ast.stmt) -> Iterator[ast.expr]:
    """Yield the expressions of a statement, without those of nested statements."""
    waiting: list[ast.AST] = [statement]
    while waiting:
        for child in ast.iter_child_nodes(waiting.pop()):
            if not isinstance(child, ast.stmt):
                waiting.append(child)
                if isinstance(child, ast.expr):
                    yield child


def _names(node: ast.expr, libraries: set[str]) -> Iterator[str]:
    match node:
        case ast.Attribute(attr=name, value=value) if is_private(name):
            owner = value.id if isinstance(value, ast.Name) else ""
            if owner not in {"self", "cls", *libraries}:
                yield name
        case ast.Call(
            func=ast.Attribute(attr=called) | ast.Name(id=called), args=[_, ast.Constant(str(name)), *_]
        ):
            if called in BY_NAME and is_private(name):
                yield name
        case ast.Constant(value=str(text)):
            yield from IN_TEXT.findall(text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the uses and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--max", type=int, default=0, help="fail (exit code 1) above this many uses")
    limit = parser.parse_args(arguments).max
    private = private_names()
    found = [use for path in sorted((ROOT / "tests").rglob("*.py")) for use in uses(path, private)]
    for use in found:
        print(f"{use.path}:{use.line}  {use.name}")
    print(f"private names in tests without a comment: {len(found)}")
    return int(len(found) > limit)


if __name__ == "__main__":
    sys.exit(main())
