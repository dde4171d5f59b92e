"""Find nodes by the names that a person gives: a node's name, a module's name, or a pattern with `*`.

Exporters name nodes in different ways. The same convolution is `layer1.0.conv1` in edgeproof's files,
`/layer1/layer1.0/conv1/Conv` in files of PyTorch's older exporter, and `node_conv2d_3` with its modules in
the metadata in files of the newer one.
"""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

import onnx

from exporter.errors import ExportError

PLACE = "quantize.exclude"
_SCOPES = "pkg.torch.onnx.name_scopes"
_WEIGHT = ".weight"
_WILD = frozenset("*?[")
_SEPARATORS = ("/", ".", ":")
_SHOWN = 12


def name_of(node: onnx.NodeProto) -> str:
    """The name of a node, or the name of its first result if it has none."""
    return node.name or (node.output[0] if node.output else node.op_type)


def matching_nodes(nodes: Sequence[onnx.NodeProto], pattern: str) -> list[onnx.NodeProto]:
    """The nodes that a pattern means, in graph order.

    1. The nodes with exactly this name. A node without a name has that of its first result.
    2. If there are none and the pattern contains `*`, `?` or `[...]`, the nodes whose name or module
       matches it.
    3. If there are none, all nodes in the module of this name.

    Args:
        nodes: the nodes of a graph.
        pattern: the text that a person gave.
    """
    exact = [node for node in nodes if name_of(node) == pattern]
    if exact:
        return exact
    if _WILD.intersection(pattern):
        return [
            node
            for node in nodes
            if any(fnmatchcase(part, pattern) for name in names_of(node) for part in _paths(name))
        ]
    module = pattern.strip("/").rstrip(".")
    below = tuple(f"{module}{separator}" for separator in _SEPARATORS)
    return [
        node for node in nodes if any(f"{name.strip('/')}.".startswith(below) for name in names_of(node))
    ]


def named_nodes(model: onnx.ModelProto, patterns: Iterable[str]) -> tuple[str, ...]:
    """The names of all nodes of a model that any of the patterns means, in graph order.

    Raises:
        ExportError: no node matches a pattern; the error lists similar names.
    """
    nodes = list(model.graph.node)
    found: set[str] = set()
    for pattern in patterns:
        matched = matching_nodes(nodes, pattern)
        if not matched:
            raise no_such_node(pattern, [node.name for node in nodes])
        found.update(node.name for node in matched)
    return tuple(dict.fromkeys(node.name for node in nodes if node.name in found))


def no_such_node(pattern: str, names: Iterable[str]) -> ExportError:
    """The error for a pattern that no node matches; it lists the most similar names first."""
    known = sorted({name for name in names if name})
    similar = difflib.get_close_matches(pattern, known, n=_SHOWN)
    some = ", ".join(list(dict.fromkeys([*similar, *known]))[:_SHOWN])
    return ExportError(
        PLACE,
        f"the graph has no node {pattern!r}",
        f"choose nodes, modules or a pattern such as 'head.*'; nodes of the graph: {some}",
    )


def names_of(node: onnx.NodeProto) -> tuple[str, ...]:
    """All names by which a person may know a node: its own, its modules, and the owner of its weights."""
    own = name_of(node)
    owners = [name.removesuffix(_WEIGHT) for name in node.input if name.endswith(_WEIGHT)]
    return tuple(dict.fromkeys([own, _dotted(own), *_scopes(node), *owners]))


def _paths(name: str) -> list[str]:
    """A name and the modules above it: `a.b.c` -> `a.b.c`, `a`, `a.b`."""
    parts = name.split(".")
    return [name, *(".".join(parts[:count]) for count in range(1, len(parts)))]


def _dotted(name: str) -> str:
    """The path of modules in a name of PyTorch's older exporter: `/a/a.0/conv/Conv` -> `a.0.conv.Conv`.

    The child of a sequence repeats the sequence's name.
    """
    if not name.startswith("/"):
        return name
    path: list[str] = []
    for part in name.strip("/").split("/"):
        if path and part.startswith(f"{path[-1]}."):
            path.pop()
        path.append(part)
    return ".".join(path)


def _scopes(node: onnx.NodeProto) -> list[str]:
    """The modules that a node ran in, as PyTorch's newer exporter states them."""
    stated = next((entry.value for entry in node.metadata_props if entry.key == _SCOPES), "[]")
    try:
        scopes = ast.literal_eval(stated)
    except (SyntaxError, ValueError):
        return []
    return [scope for scope in scopes if scope] if isinstance(scopes, list) else []
