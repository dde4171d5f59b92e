"""Outputs of a graph that it does not compute for itself alone: inputs, and outputs that it lists twice.

ONNX Runtime runs such graphs. But onnx-ir renames these inputs and outputs, and the quantizer rounds an
output in place, which makes a cycle if the output is an input. Both therefore see the other outputs only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import onnx
import onnx_ir as ir

from exporter.graphs.edits import copy_of


@contextmanager
def plain_outputs(graph: ir.Graph) -> Iterator[None]:
    """Leave the other outputs out of a graph for a while; each then gets its place back."""
    given = list(graph.outputs)
    inputs = set(graph.inputs)
    plain = [value for value in dict.fromkeys(given) if value not in inputs]
    graph.outputs[:] = plain
    yield
    now = dict(zip(plain, graph.outputs, strict=True))
    graph.outputs[:] = [now.get(value, value) for value in given]


def with_plain_outputs(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without the other outputs: the model itself if there are none, otherwise a copy."""
    inputs = {value.name for value in model.graph.input}
    plain = {value.name: value for value in model.graph.output if value.name not in inputs}
    if len(plain) == len(model.graph.output):
        return model
    copy = copy_of(model)
    del copy.graph.output[:]
    copy.graph.output.extend(plain.values())
    return copy


def set_outputs(model: onnx.ModelProto, given: onnx.ModelProto) -> None:
    """Give a model the outputs of another one, in place."""
    outputs = list(given.graph.output)
    del model.graph.output[:]
    model.graph.output.extend(outputs)
