"""Trace the nodes of a given file through simplification, so that a person can name what the file shows.

Simplification folds, merges and replaces nodes, and new nodes get generated names. But most tensors between
nodes keep their names: those that the given and the simplified graph have in common cut both graphs into
regions that compute the same. A vanished node became a part of the region that it is in.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import onnx

from exporter.graphs.index import GraphIndex, reads_of
from exporter.graphs.names import unused_name
from exporter.graphs.node_patterns import matching_nodes, name_of, no_such_node
from exporter.graphs.rewrites.free_names import needed_names

# These read only the shape of a tensor, not its values.
_OF_SHAPES = frozenset({"Shape", "Size"})
# A vanished node of these types leaves no other node; any other one became part of its neighbour.
_WITHOUT_TRACE = frozenset(
    {
        "Cast", "Concat", "Dropout", "Expand", "Flatten", "Gather", "Identity", "Pad", "Reshape", "Slice",
        "Split", "Squeeze", "Transpose", "Unsqueeze",
    }
)  # fmt: skip


def read_given(path: Path) -> GraphIndex:
    """The nodes of a file without attributes and weights, each with a name."""
    graph = onnx.load(path, load_external_data=False).graph
    light = onnx.GraphProto(input=[onnx.ValueInfoProto(name=value.name) for value in graph.input])
    light.output.extend(onnx.ValueInfoProto(name=value.name) for value in graph.output)
    light.initializer.extend(onnx.TensorProto(name=tensor.name) for tensor in graph.initializer)
    for node in graph.node:
        light.node.add(
            name=name_of(node),
            op_type=node.op_type,
            domain=node.domain,
            input=reads_of(node),
            output=node.output,
            metadata_props=node.metadata_props,
        )
    return GraphIndex.of(light)


@dataclass(frozen=True, eq=False)
class Trace:
    """The nodes of a given graph, and the nodes of the simplified graph that they became.

    Attributes:
        given: the nodes of the file as given; see `read_given`.
        now: the simplified graph.
    """

    given: GraphIndex
    now: GraphIndex
    _regions: dict[str, list[onnx.NodeProto]] = field(default_factory=dict, repr=False)

    def became(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """The nodes that a node of the given graph became; none if it is computed in advance or left out.

        1. The node of this name, if it computes the same.
        2. Otherwise the new nodes of the regions that the node is in, those of the same type if there are
           any.
        3. Otherwise the nodes that finish the regions, because they absorbed it.
        """
        same = self.now.by_name.get(node.name)
        if same is not None and self._is_same(node, same):
            return [same]
        if not self._live.intersection(node.output):
            return []
        ends = self._ends(node)
        region = {id(part): part for end in ends for part in self._region(end)}
        new = [part for part in region.values() if id(part) not in self.kept]
        alike = [part for part in new if part.op_type == node.op_type]
        if alike or new:
            return alike or new
        if node.op_type in _WITHOUT_TRACE:
            return []
        makers = (self.now.maker(end) for end in ends)
        return list({id(maker): maker for maker in makers if maker is not None}.values())

    def _is_same(self, given: onnx.NodeProto, now: onnx.NodeProto) -> bool:
        """Whether two nodes of one name are the same; generated names can be equal by chance."""
        common = [name for name in now.output if name in self._common]
        return given.op_type == now.op_type and (
            not common or bool(set(common).intersection(self._ends(given)))
        )

    @cached_property
    def _common(self) -> set[str]:
        """The results of nodes that both graphs have."""
        return _results(self.given.nodes) & _results(self.now.nodes)

    @cached_property
    def kept(self) -> set[int]:
        """The simplified nodes that still have their given name."""
        return {
            id(node)
            for node in self.now.nodes
            if node.name in self.given.by_name and self._is_same(self.given.by_name[node.name], node)
        }

    @cached_property
    def _live(self) -> set[str]:
        """The tensors of the given graph that depend on the values of its inputs, not only on shapes."""
        live = set(self.given.inputs)
        for node in self.given.nodes:
            if node.op_type not in _OF_SHAPES and live.intersection(node.input):
                live.update(node.output)
        return live

    def _ends(self, node: onnx.NodeProto) -> list[str]:
        """The first common tensors at or after a node of the given graph."""
        ends: dict[str, None] = {}
        seen, todo = set(), [name for name in node.output if name]
        while todo:
            name = todo.pop()
            if name in seen:
                continue
            seen.add(name)
            if name in self._common:
                ends[name] = None
                continue
            for reader in self.given.readers(name):
                if reader.op_type not in _OF_SHAPES:
                    todo.extend(result for result in reader.output if result)
        return list(ends)

    def _region(self, end: str) -> list[onnx.NodeProto]:
        """The simplified nodes that compute a common tensor from other common tensors."""
        if end not in self._regions:
            found: dict[int, onnx.NodeProto] = {}
            todo = [end]
            while todo:
                maker = self.now.maker(todo.pop())
                if maker is not None and id(maker) not in found:
                    found[id(maker)] = maker
                    todo.extend(name for name in reads_of(maker) if name not in self._common)
            self._regions[end] = list(found.values())
        return self._regions[end]


def _results(nodes: Iterable[onnx.NodeProto]) -> set[str]:
    return {name for node in nodes for name in node.output if name}


def restore_names(model: onnx.ModelProto, given: GraphIndex) -> None:
    """Give the nodes of a simplified graph the names that their origins have in the given file, in place.

    A node gets the name of the given node of its type that became this node alone, otherwise that of the
    given node that computes the same tensor. Other nodes keep their generated names. So reports and errors
    name what the person's file shows. A name that the quantizer needs for its own nodes gets a number.

    Args:
        model: the simplified model.
        given: the nodes of the file as given.
    """
    trace = Trace(given, GraphIndex.of(model.graph))
    wanted = {id(node): node.name for node in model.graph.node if id(node) in trace.kept}
    for origin in given.nodes:
        became = trace.became(origin)
        if len(became) == 1 and became[0].op_type == origin.op_type:
            wanted.setdefault(id(became[0]), origin.name)
    for node in model.graph.node:
        if id(node) not in wanted:
            origins = (given.maker(name) for name in node.output)
            wanted[id(node)] = next((o.name for o in origins if o is not None), node.name)
    index = GraphIndex.of(model.graph)
    taken = needed_names((*index.inputs, *index.constants, *_results(model.graph.node)))
    for node in model.graph.node:
        node.name = unused_name(wanted[id(node)] or name_of(node), taken)
        taken.add(node.name)


def excluded_nodes(model: onnx.ModelProto, given: GraphIndex, patterns: Sequence[str]) -> tuple[str, ...]:
    """The names of the simplified nodes that a person's names and patterns exclude.

    The patterns are matched with the nodes of the given file (`node_patterns.matching_nodes`) and then with
    those of the simplified graph. A node that is computed in advance excludes nothing: it never runs.

    Args:
        model: the simplified model, with restored names.
        given: the nodes of the file as given.
        patterns: names, modules or patterns with `*`.

    Raises:
        ExportError: no node matches a pattern.
    """
    trace = Trace(given, GraphIndex.of(model.graph))
    found: dict[str, None] = {}
    for pattern in patterns:
        origins = matching_nodes(given.nodes, pattern)
        now = [node for origin in origins for node in trace.became(origin)]
        now += [] if origins else matching_nodes(trace.now.nodes, pattern)
        if not origins and not now:
            raise no_such_node(pattern, [name_of(node) for node in given.nodes])
        found.update((node.name, None) for node in now)
    return tuple(found)
