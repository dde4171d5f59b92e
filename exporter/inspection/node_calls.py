"""Record which operators of a model run, how often and with which shapes; bodies of `If` and loops too."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import onnx
import onnxruntime
from onnx import numpy_helper

from bench.core.arrays import Array
from exporter.graphs.edits import copy_of
from exporter.graphs.index import bodies_of
from exporter.graphs.inference import open_model, session_options
from exporter.inspection.macs import Call, Shape

_KERNEL = "_kernel_time"
_INTEGERS = frozenset({onnx.TensorProto.INT32, onnx.TensorProto.INT64})
# One tensor: the name of its type -> its shape.
_TypedShape = Mapping[str, Sequence[int]]


class _Arguments(TypedDict):
    """The shapes of a kernel's run in ONNX Runtime's profile."""

    input_type_shape: Sequence[_TypedShape]
    output_type_shape: Sequence[_TypedShape]


class _Event(TypedDict, total=False):
    """An event of ONNX Runtime's profile; `args` belong to a kernel if `cat` is "Node"."""

    cat: str
    name: str
    args: _Arguments


@dataclass(frozen=True)
class PlacedNode:
    """A node, and the control-flow node whose body contains it, or None in the main graph."""

    node: onnx.NodeProto
    container: onnx.NodeProto | None


def all_nodes(graph: onnx.GraphProto, container: onnx.NodeProto | None = None) -> Iterator[PlacedNode]:
    """Yield the nodes of a graph and of all bodies in it; a container comes before its bodies' nodes."""
    for node in graph.node:
        yield PlacedNode(node, container)
        for body in bodies_of(node):
            yield from all_nodes(body, node)


def node_calls(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> list[tuple[Call, ...] | None]:
    """Run a model once without optimizations, and read its calls from ONNX Runtime's profile.

    Args:
        model: the model; its local functions are inlined.
        feeds: input name -> array.

    Returns:
        For each node of `all_nodes`, its runs, or None if the profile does not report the shapes.
    """
    named = copy_of(model)
    nodes = [placed.node for placed in all_nodes(named.graph)]
    for index, node in enumerate(nodes):
        node.name = f"node_{index}"
    events: dict[str, list[_Arguments]] = {}
    for event in _profile(named, feeds):
        if event.get("cat") == "Node" and event["name"].endswith(_KERNEL):
            events.setdefault(event["name"].removesuffix(_KERNEL), []).append(event["args"])
    integers = _constant_integers(model.graph)
    return [_calls(node, events.get(node.name, []), integers) for node in nodes]


def _constant_integers(graph: onnx.GraphProto) -> dict[str, int]:
    """The initializers and results of Constant nodes that hold one integer, in the graph and its bodies."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    found: dict[str, int] = {}
    for node in graph.node:
        for attribute in node.attribute if node.op_type == "Constant" else ():
            if attribute.name == "value":
                tensors[node.output[0]] = attribute.t
            elif attribute.name == "value_int":
                found[node.output[0]] = attribute.i
        for body in bodies_of(node):
            found |= _constant_integers(body)
    return found | {
        name: int(numpy_helper.to_array(tensor).item())
        for name, tensor in tensors.items()
        if tensor.data_type in _INTEGERS and math.prod(tensor.dims) == 1
    }


def _profile(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> list[_Event]:
    with tempfile.TemporaryDirectory(prefix="edgeproof-") as folder:
        options = session_options(threads=0)
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        # With prepacking, the profile omits inputs that exist only in a kernel's own layout.
        options.add_session_config_entry("session.disable_prepacking", "1")
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = open_model(model, options)
        session.run(None, dict(feeds))
        found: list[_Event] = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        return found


def _calls(
    node: onnx.NodeProto, events: Sequence[_Arguments], integers: Mapping[str, int]
) -> tuple[Call, ...] | None:
    known = tuple(integers.get(name) for name in node.input)
    calls = []
    for event in events:
        inputs = _shapes(node.input, event["input_type_shape"])
        outputs = _shapes(node.output, event["output_type_shape"])
        if inputs is None or outputs is None:
            return None
        calls.append(Call(inputs, outputs, known))
    return tuple(calls)


def _shapes(names: Sequence[str], seen: Sequence[_TypedShape]) -> tuple[Shape | None, ...] | None:
    """Shapes by position, None for an omitted tensor; a single None if the profile lacks a needed shape."""
    shapes = [tuple(shape) for entry in seen for shape in entry.values()]
    if len(shapes) != sum(1 for name in names if name):
        return None
    rest = iter(shapes)
    return tuple(next(rest) if name else None for name in names)
