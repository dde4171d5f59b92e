"""Check on ONNX Runtime's optimized graph that the products that should run in int8 really do."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from exporter.errors import ExportError
from exporter.graphs.index import GraphIndex
from exporter.graphs.inference import open_model, optimizing_options
from exporter.graphs.ranges import Range
from exporter.graphs.targets import Target
from exporter.inspection.fusion import plain_name
from exporter.quantization.placement import Placement
from exporter.quantization.qdq import QdqPlan, make_qdq, plan_qdq

# Smaller constants stay in the optimized file. The others go to a second file, which is not read.
_SMALL_BYTES = "1024"


@dataclass(frozen=True)
class FusingPlan:
    """A plan all of whose products run in int8.

    Attributes:
        plan: the plan.
        ranges: the ranges of all its tensors.
        model: the int8 model.
        exclude: the nodes that were left out of the plan.
    """

    plan: QdqPlan
    ranges: Mapping[str, Range]
    model: onnx.ModelProto
    exclude: tuple[str, ...]


def plan_what_fuses(
    model: onnx.ModelProto,
    target: Target,
    exclude: tuple[str, ...],
    known: Mapping[str, Range],
    collect: Callable[[QdqPlan, Sequence[str]], Mapping[str, Range]],
    *,
    all_may_be_excluded: bool = False,
) -> FusingPlan:
    """Plan an int8 model, and leave products in float that ONNX Runtime would not run in int8.

    Args:
        model: the float model.
        target: the kind of CPU.
        exclude: nodes to leave in float.
        known: ranges that need not be collected.
        collect: collects the ranges of tensors of a plan.
        all_may_be_excluded: whether the plan may be empty because of `exclude`.

    Raises:
        ExportError: nothing would run in int8.
    """
    ranges, lost = dict(known), frozenset[str]()
    while True:
        plan = plan_qdq(model, target, exclude)
        placement = plan.options.placement
        if not placement.nodes and (lost or not all_may_be_excluded):
            raise _nothing_left(model.graph.name, lost)
        if missing := [name for name in plan.tensors if name not in ranges]:
            ranges |= collect(plan, missing)
        made = make_qdq(plan, ranges)
        lost = not_fused(made, placement, target)
        if not lost:
            return FusingPlan(plan, ranges, made, exclude)
        exclude = (*exclude, *sorted(lost))


def _nothing_left(place: str, lost: Collection[str]) -> ExportError:
    """The error for a model without nodes in int8.

    Args:
        place: name of the graph.
        lost: products that ONNX Runtime does not run in int8; if there are none, all are excluded.
    """
    some = ", ".join(sorted(lost)[:3])
    return ExportError(
        place or "model",
        f"ONNX Runtime has no int8 kernel for its Conv, Gemm and MatMul (for example {some})"
        if lost
        else "has nothing left to run in int8: its Conv, Gemm and MatMul are excluded",
        "use the float model" if lost else "exclude fewer nodes, or use the float model",
    )


def not_fused(model: onnx.ModelProto, placement: Placement, target: Target) -> frozenset[str]:
    """Find the placed nodes that ONNX Runtime runs in float.

    A node with constant weights that does not fuse into an int8 kernel is the worst case: it runs in float,
    and its weights are dequantized in every inference. Placement follows the rules of the optimizer, but
    these rules are many, and they change from version to version.

    Args:
        model: a QDQ model.
        placement: the placement that the quantizer received.
        target: the kind of CPU. The optimizer fuses as on that kind, on any host.

    Returns:
        Names of nodes of the float model.
    """
    if not placement.nodes:
        return frozenset()
    optimized = GraphIndex.of(_optimized(model, target).graph)
    readers: dict[str, set[str]] = {}
    for node in optimized.nodes:
        if node.op_type == "DequantizeLinear" and optimized.is_constant(node.input[0]):
            found = readers.setdefault(node.input[0], set())
            found |= {plain_name(reader) for reader in optimized.readers_of(node)}
    graph = GraphIndex.of(model.graph)
    return frozenset(
        node.name
        for node in graph.nodes
        if node.name in placement.nodes and (names := readers.get(_stored_weights(node, graph)))
        # A fusion gives its node a new name. Then every node with these weights may be the one.
        if node.name in names or not names <= graph.by_name.keys()
    )


def _stored_weights(node: onnx.NodeProto, graph: GraphIndex) -> str:
    """The name of the int8 weights that a node reads through a DequantizeLinear; empty if it has none."""
    source = graph.maker(node.input[1], "DequantizeLinear") if len(node.input) > 1 else None
    return "" if source is None else source.input[0]


def _optimized(model: onnx.ModelProto, target: Target) -> onnx.ModelProto:
    """The graph that ONNX Runtime optimizes for a kind of CPU, without its large weights."""
    with tempfile.TemporaryDirectory(prefix="edgeproof-") as folder:
        path = Path(folder) / "optimized.onnx"
        options = optimizing_options(path, target.signed_activations)
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.disable_prepacking", "1")
        options.add_session_config_entry(
            "session.optimized_model_external_initializers_file_name", "weights.bin"
        )
        options.add_session_config_entry(
            "session.optimized_model_external_initializers_min_size_in_bytes", _SMALL_BYTES
        )
        open_model(model, options)
        return onnx.load(path, load_external_data=False)
