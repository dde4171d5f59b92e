"""An index of an ONNX graph: the producer and readers of each tensor, its constants, shapes and types."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import onnx
from onnx import numpy_helper

from bench.core.arrays import Array

_BODIES = frozenset({onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS})


@dataclass(frozen=True, eq=False)
class GraphIndex:
    """A snapshot of a graph. `GraphIndex.of` builds it in time proportional to the size of the graph.

    The nodes and tensors of the index are objects of the graph, so a change to one changes the model. The
    index itself is not updated: build it again after an edit. A rewrite with many changes therefore uses
    one index, collects its changes and applies them at the end (`exporter.graphs.edits`).

    The tensors that the bodies of an If, Loop or Scan read from outside count as read by that node. Results
    inside a body are not indexed. The empty name marks an omitted optional input or output; it is not a
    tensor.

    Attributes:
        nodes: all nodes, in graph order.
        by_name: the nodes that have a name.
        inputs: names of the inputs to feed. A constant that is also listed as an input is not included.
        outputs: names of the outputs.
        constants: initializers by name. Results of Constant nodes are not included.
        values: the stated types and shapes of inputs, outputs and inner tensors, by name.
    """

    nodes: tuple[onnx.NodeProto, ...]
    by_name: Mapping[str, onnx.NodeProto] = field(repr=False)
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    constants: Mapping[str, onnx.TensorProto] = field(repr=False)
    values: Mapping[str, onnx.ValueInfoProto] = field(repr=False)
    _makers: Mapping[str, onnx.NodeProto] = field(repr=False)
    _readers: Mapping[str, tuple[onnx.NodeProto, ...]] = field(repr=False)
    _uses: Mapping[str, int] = field(repr=False)

    @classmethod
    def of(cls, graph: onnx.GraphProto) -> GraphIndex:
        """Index a graph."""
        nodes = tuple(graph.node)
        constants = {tensor.name: tensor for tensor in graph.initializer}
        uses = Counter(value.name for value in graph.output)
        readers: dict[str, list[onnx.NodeProto]] = {}
        for node in nodes:
            for name in reads_of(node):
                uses[name] += 1
                found = readers.setdefault(name, [])
                if not found or found[-1] is not node:
                    found.append(node)
        return cls(
            nodes=nodes,
            by_name={node.name: node for node in nodes if node.name},
            inputs=tuple(value.name for value in graph.input if value.name not in constants),
            outputs=tuple(value.name for value in graph.output),
            constants=constants,
            values={v.name: v for v in (*graph.input, *graph.value_info, *graph.output)},
            _makers={name: node for node in nodes for name in node.output if name},
            _readers={name: tuple(found) for name, found in readers.items()},
            _uses=uses,
        )

    def maker(self, tensor: str, op_type: str | None = None) -> onnx.NodeProto | None:
        """The node that computes a tensor; None for an input, a constant or an unknown name.

        Args:
            tensor: name of the tensor.
            op_type: if given, return None for a node of another type.
        """
        node = self._makers.get(tensor)
        return None if node is None or op_type not in {None, node.op_type} else node

    def readers(self, tensor: str) -> tuple[onnx.NodeProto, ...]:
        """The nodes that read a tensor, each once, in graph order."""
        return self._readers.get(tensor, ())

    def readers_of(self, node: onnx.NodeProto) -> tuple[onnx.NodeProto, ...]:
        """The nodes that read any of a node's results, each once."""
        found = {id(reader): reader for name in node.output for reader in self.readers(name)}
        return tuple(found.values())

    def only_reader(self, tensor: str) -> onnx.NodeProto | None:
        """The only node that reads a tensor; None if the tensor is used more than once or is an output."""
        readers = self.readers(tensor)
        return readers[0] if readers and self.uses(tensor) == 1 else None

    def uses(self, tensor: str) -> int:
        """The number of times that a tensor is read; being an output of the graph counts as one."""
        return self._uses.get(tensor, 0)

    def is_constant(self, tensor: str) -> bool:
        """Whether a tensor is an initializer."""
        return tensor in self.constants

    def constant(self, tensor: str) -> Array:
        """The value of an initializer."""
        return numpy_helper.to_array(self.constants[tensor])

    def shape(self, tensor: str) -> tuple[int | None, ...] | None:
        """The sizes of a tensor's axes, None for a dynamic axis; None if the graph states no shape."""
        if tensor in self.constants:
            return tuple(self.constants[tensor].dims)
        value = self.values.get(tensor)
        if value is None or not value.type.tensor_type.HasField("shape"):
            return None
        axes = value.type.tensor_type.shape.dim
        return tuple(axis.dim_value if axis.HasField("dim_value") else None for axis in axes)

    def element_type(self, tensor: str) -> int:
        """The `TensorProto.DataType` of a tensor's elements; `UNDEFINED` (0) if the graph states none."""
        if tensor in self.constants:
            return self.constants[tensor].data_type
        value = self.values.get(tensor)
        return onnx.TensorProto.UNDEFINED if value is None else value.type.tensor_type.elem_type

    def names(self) -> set[str]:
        """The names of all tensors, including those inside bodies; a new tensor needs another name."""
        inside = {name for node in self.nodes for body in bodies_of(node) for name in _names_in(body)}
        return {*self.values, *self.constants, *self._makers, *self._readers} | inside


def bodies_of(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Yield the graphs that a node contains: branches of an If, bodies of loops."""
    for attribute in node.attribute:
        if attribute.type in _BODIES:
            yield from [attribute.g] if attribute.HasField("g") else attribute.graphs


def reads_of(node: onnx.NodeProto) -> list[str]:
    """The tensors that a node and its bodies read from the graph, each as often as it is read."""
    read = [name for name in node.input if name]
    for body in bodies_of(node):
        read += _reads_from_outside(body)
    return read


def _reads_from_outside(body: onnx.GraphProto) -> Iterator[str]:
    made = {name for node in body.node for name in node.output}
    own = made.union(value.name for value in (*body.input, *body.initializer))
    read = [name for node in body.node for name in reads_of(node)]
    yield from (name for name in (*read, *(value.name for value in body.output)) if name not in own)


def _names_in(body: onnx.GraphProto) -> set[str]:
    return GraphIndex.of(body).names()
