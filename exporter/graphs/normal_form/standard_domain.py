"""Give ONNX's standard operators one name of their domain and one opset.

ONNX Runtime reads `""` and `"ai.onnx"` as the same domain, in nodes, opset imports and functions. ONNX's
shape inference and checker look up `""` only (INVALID_GRAPH for a file that imports `"ai.onnx"`).
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx
from onnx import helper

from exporter.graphs.domains import domain_of
from exporter.graphs.index import bodies_of


def use_one_domain(model: onnx.ModelProto) -> None:
    """Name the standard domain `""` everywhere, and import each domain once, in place."""
    for part in (model, *model.functions):
        _import_once(part)
    for nodes in (model.graph.node, *(function.node for function in model.functions)):
        _rename(nodes)


def _import_once(part: onnx.ModelProto | onnx.FunctionProto) -> None:
    """Keep the last import of each domain, as ONNX Runtime 1.32 does (`core/graph/model.cc`)."""
    versions = {domain_of(entry): entry.version for entry in part.opset_import}
    del part.opset_import[:]
    part.opset_import.extend(helper.make_opsetid(*entry) for entry in versions.items())


def _rename(nodes: Iterable[onnx.NodeProto]) -> None:
    for node in nodes:
        node.domain = domain_of(node)
        for body in bodies_of(node):
            _rename(body.node)
