"""The QDQ form of a float graph: what of it is rounded, and the making of it once ranges are known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import onnx

from exporter.errors import ExportError
from exporter.graphs.edits import copy_of
from exporter.graphs.names import name_nodes
from exporter.graphs.onnx_files import infer_shapes
from exporter.graphs.ranges import Range
from exporter.graphs.rewrites import hard_swish
from exporter.graphs.rewrites.processing import byte_ranges, edge_nodes, join_bytes
from exporter.graphs.targets import Target
from exporter.inspection.saturation import NO_OVERRIDES, Overrides
from exporter.quantization.ort_quantizer import QuantizerOptions, rounded_tensors, run_quantizer
from exporter.quantization.placement import keep_in_float, place, read_unrounded


@dataclass(frozen=True, kw_only=True)
class QdqPlan:
    """What is decided on the graph alone, before any sample is seen.

    Attributes:
        network: the float model, its nodes named and its shapes inferred; its ranges are collected.
        graph: the same in the form that is quantized; see `exporter.graphs.rewrites.hard_swish`.
        gates: the ranges of tensors that only `graph` has.
        bytes: the ranges of tensors that are made of bytes inside the graph.
        options: for the quantizer.
        tensors: names of the tensors whose ranges are wanted, in graph order.
    """

    network: onnx.ModelProto
    graph: onnx.ModelProto
    gates: Mapping[str, Range]
    bytes: Mapping[str, Range]
    options: QuantizerOptions
    tensors: tuple[str, ...]


def plan_qdq(model: onnx.ModelProto, target: Target, exclude: tuple[str, ...] = ()) -> QdqPlan:
    """Decide what of a float model runs in int8.

    A HardSwish is split only where all of its parts do. Pre- and postprocessing inside the graph stay as
    they are.

    Args:
        model: the float model, BatchNorm folded; it stays as it is.
        target: decides types, granularity and operators.
        exclude: names of nodes to leave in float.

    Raises:
        ExportError: an excluded node does not exist, or nothing would run in int8 though nothing is
            excluded.
    """
    check_exclude(model, exclude)
    network = infer_shapes(model)
    name_nodes(network)
    left = (*exclude, *edge_nodes(network))
    names = hard_swish.candidates(network) - set(left)
    while True:
        graph = copy_of(network)
        gates = hard_swish.split(graph, names)
        placement = place(graph, target.operators, left)
        whole = frozenset(name for name in names if name in placement.nodes)
        if whole == names:
            break
        names = whole
    if not placement.nodes and not exclude:
        raise ExportError(
            model.graph.name or "model",
            "holds nothing that runs in int8: no Conv, Gemm or MatMul with constant weights",
            "ship it in float",
        )
    options = QuantizerOptions(target, placement)
    known = byte_ranges(network)
    wanted = rounded_tensors(graph, options)
    tensors = tuple(name for name in wanted if name not in gates and name not in known)
    return QdqPlan(network=network, graph=graph, gates=gates, bytes=known, options=options, tensors=tensors)


def make_qdq(
    plan: QdqPlan, ranges: Mapping[str, Range], overrides: Overrides = NO_OVERRIDES
) -> onnx.ModelProto:
    """Quantize.

    Args:
        plan: made by `plan_qdq`.
        ranges: of `plan.tensors`; others are ignored.
        overrides: how to round single weights.

    Raises:
        ExportError: ONNX Runtime refuses the model.
    """
    known = {name: ranges[name] for name in plan.tensors} | dict(plan.gates) | dict(plan.bytes)
    model = run_quantizer(plan.graph, known, replace(plan.options, overrides=overrides))
    read_unrounded(model, plan.options.placement)
    keep_in_float(model, plan.options.placement)
    hard_swish.hide_factor(model, plan.gates)
    join_bytes(model)
    return model


def check_exclude(model: onnx.ModelProto, exclude: tuple[str, ...]) -> None:
    """Make sure that all nodes to leave in float exist.

    Raises:
        ExportError: with nodes that there are.
    """
    names = {node.name for node in model.graph.node}
    for name in exclude:
        if name not in names:
            some = ", ".join(sorted(names)[:12])
            raise ExportError("quantize.exclude", f"the graph has no node {name!r}", f"it has: {some}")
