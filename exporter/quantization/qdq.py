"""The QDQ form of a float graph: first plan which tensors to round, then build it with their ranges."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import onnx

from exporter.errors import ExportError
from exporter.graphs.edits import copy_of
from exporter.graphs.float_fusions import float_fusions
from exporter.graphs.kernels import kernel_version
from exporter.graphs.names import name_nodes
from exporter.graphs.node_patterns import named_nodes
from exporter.graphs.onnx_files import infer_shapes
from exporter.graphs.plain_outputs import set_outputs, with_plain_outputs
from exporter.graphs.ranges import Range
from exporter.graphs.rewrites import hard_swish, transposed_convolution
from exporter.graphs.rewrites.processing import byte_ranges, edge_nodes, join_bytes, sign_bytes
from exporter.graphs.slow_kernels import slow_nodes
from exporter.graphs.targets import Target
from exporter.inspection.saturation import NO_OVERRIDES, Overrides
from exporter.quantization.around_products import keep_activations_apart, keep_biases_apart
from exporter.quantization.float_operators import keep_float_operators_apart
from exporter.quantization.front_ends import front_end_nodes
from exporter.quantization.ort_quantizer import QuantizerOptions, rounded_tensors, run_quantizer
from exporter.quantization.placement import keep_in_float, place, read_unrounded
from exporter.quantization.plain_gemm import make_gemms_plain
from exporter.quantization.shared_constants import keep_constants_in_float
from exporter.quantization.stacked_weights import shared_scales, unstack_single_matrices


@dataclass(frozen=True, kw_only=True)
class QdqPlan:
    """The decisions that depend only on the graph, taken before calibration.

    Attributes:
        network: the float model to calibrate, with named nodes and inferred shapes.
        graph: the same model in the form to quantize; see `exporter.graphs.rewrites.hard_swish` and
            `transposed_convolution` there, and the files `plain_gemm` and `stacked_weights` of this folder.
        moved: the tensors that only `graph` has -> the tensors of `network` with the same values.
        gates: the ranges of other tensors that only `graph` has.
        bytes: the ranges of tensors that the graph computes from bytes.
        options: options for the quantizer.
        tensors: names of the tensors to calibrate, in graph order.
    """

    network: onnx.ModelProto
    graph: onnx.ModelProto
    moved: Mapping[str, str]
    gates: Mapping[str, Range]
    bytes: Mapping[str, Range]
    options: QuantizerOptions
    tensors: tuple[str, ...]


def plan_qdq(model: onnx.ModelProto, target: Target, exclude: tuple[str, ...] = ()) -> QdqPlan:
    """Decide which nodes of a float model run in int8.

    A HardSwish is split only if all of its parts run in int8. These stay in float: pre- and postprocessing
    inside the graph, activations and norms that ONNX Runtime fuses in float, convolutions that are slower
    in int8, and spectral front ends.

    Args:
        model: the float model with folded BatchNorm; it is not changed.
        target: the kind of CPU, which determines types, granularity and operators.
        exclude: nodes to leave in float, by name, module or pattern (`exporter.graphs.node_patterns`).

    Raises:
        ExportError: an excluded node does not exist, or nothing would run in int8 though nothing is
            excluded.
    """
    network = infer_shapes(model)
    name_nodes(network)
    exclude = named_nodes(network, exclude)
    slow, front = slow_nodes(network), front_end_nodes(network)
    left = (*exclude, *edge_nodes(network), *float_fusions(network), *slow, *front)
    names = hard_swish.candidates(network) - set(left)
    moves_blocks = not target.signed_activations or target.runtime >= kernel_version("DepthToSpace", "int8")
    while True:
        graph = copy_of(network)
        added = make_gemms_plain(graph, left)
        unstack_single_matrices(graph)
        moved = transposed_convolution.as_convolutions(graph, left, depth_to_space=moves_blocks)
        gates = hard_swish.split(graph, names)
        placement = place(graph, target.operators, {*left, *added})
        whole = frozenset(name for name in names if name in placement.nodes)
        if whole == names:
            break
        names = whole
    if not placement.nodes and not exclude:
        raise ExportError(
            model.graph.name or "model",
            "has nothing that is faster in int8: its convolutions have too few channels"
            if slow
            else "has nothing that can run in int8: no Conv, Gemm or MatMul with constant weights",
            "use the float model",
        )
    options = QuantizerOptions(target, placement)
    known = byte_ranges(network)
    wanted = dict.fromkeys(moved.get(name, name) for name in rounded_tensors(graph, options))
    tensors = tuple(name for name in wanted if name not in gates and name not in known)
    return QdqPlan(
        network=network,
        graph=graph,
        moved=moved,
        gates=gates,
        bytes=known,
        options=options,
        tensors=tensors,
    )


def make_qdq(
    plan: QdqPlan, ranges: Mapping[str, Range], overrides: Overrides = NO_OVERRIDES
) -> onnx.ModelProto:
    """Build the QDQ model of a plan.

    Args:
        plan: the result of `plan_qdq`.
        ranges: ranges of at least `plan.tensors`; others are ignored.
        overrides: how to round particular weights.

    Raises:
        ExportError: ONNX Runtime rejects the model.
    """
    known = {name: ranges[name] for name in plan.tensors} | dict(plan.gates) | dict(plan.bytes)
    known |= {new: known[old] for new, old in plan.moved.items() if old in known}
    chosen = {**shared_scales(plan.graph, plan.options.placement), **overrides}
    model = run_quantizer(with_plain_outputs(plan.graph), known, replace(plan.options, overrides=chosen))
    set_outputs(model, plan.graph)
    if plan.options.target.signed_activations:
        sign_bytes(model, plan.options.placement.nodes)
    keep_constants_in_float(model, plan.graph, plan.options.placement)
    read_unrounded(model, plan.options.placement)
    keep_in_float(model, plan.options.placement)
    keep_biases_apart(model, plan.options.placement)
    keep_activations_apart(model, plan.options.placement)
    keep_float_operators_apart(model, plan.options.placement)
    hard_swish.hide_factor(model, plan.gates)
    join_bytes(model)
    return model
