"""Empirical bias correction: subtract the mean error that int8 adds to every channel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnxruntime

from bench.core.arrays import Array
from bench.inputs.session import FATAL_ONLY
from exporter.graphs.attributes import attributes_of
from exporter.graphs.edits import add_constant, add_outputs, copy_of, replace_nodes
from exporter.graphs.index import GraphIndex
from exporter.graphs.inference import open_model
from exporter.graphs.layers import Layer, find_layers, with_constants, with_own_biases
from exporter.graphs.observed import Observed
from exporter.quantization.repair.base import RepairContext
from exporter.results import BiasFigures

# The means over the positions of a feature map converge quickly: 64 samples were no better
# (EfficientNet-Lite0).
MAX_SAMPLES = 32


def correct_bias(model: onnx.ModelProto, context: RepairContext) -> tuple[onnx.ModelProto, BiasFigures]:
    """Add to each bias the mean of (float output - int8 output) of its channel.

    The method is from Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias
    Correction" (2019), appendix D. It corrects layer by layer in graph order, so the correction of a layer
    includes the remaining errors of the layers before it. Memory holds only the means and one batch.

    1. The Quantize and Dequantize nodes simulate the int8 graph. The biases are its inputs, and each run
       stops at the output of the current layer.
    2. A convolution or Gemm without bias gets one. A MatMul without an Add after it does not change.
    """
    model = with_own_biases(model)
    quantized = context.qdq_model(model)
    index, rounded = GraphIndex.of(model.graph), GraphIndex.of(quantized.graph).by_name
    found = find_layers(index)
    layers = [layer for layer in found if layer.bias is not None and layer.bias_node in rounded]
    if not layers:
        return model, BiasFigures(layers=0, largest_correction=0.0)
    places = {layer.node: rounded[str(layer.bias_node)].output[0] for layer in layers}
    biases = {str(layer.bias): index.constant(str(layer.bias)) for layer in layers}
    session = simulation(model, quantized, layers)
    largest = 0.0
    with context.progress.task("bias correction", len(layers)) as task:
        wanted = _float_means(layers, context)
        for layer, target in zip(layers, wanted, strict=True):
            got = _mean(session, places[layer.node], layer, biases, context)
            bias = str(layer.bias)
            biases[bias] = (biases[bias] + target - got).astype(np.float32)
            largest = max(largest, float(np.abs(target - got).max()))
            task.advance()
    return with_constants(model, biases), BiasFigures(layers=len(layers), largest_correction=largest)


def simulation(
    model: onnx.ModelProto, quantized: onnx.ModelProto, layers: Sequence[Layer]
) -> onnxruntime.InferenceSession:
    """The int8 model with dequantized weights, float biases as inputs, and all layers' results as outputs.

    Args:
        model: the float model; every layer in `layers` has a bias in it.
        quantized: the QDQ form of `model`.
        layers: the layers of `model` whose biases become inputs.
    """
    copy = copy_of(quantized)
    index = GraphIndex.of(copy.graph)
    kept = []
    for node in index.nodes:
        if node.op_type == "DequantizeLinear" and index.is_constant(node.input[0]):
            add_constant(copy.graph, node.output[0], _dequantized(node, index))
        else:
            kept.append(node)
    replace_nodes(copy.graph, kept)
    by_name, float_nodes = (GraphIndex.of(each.graph).by_name for each in (copy, model))
    for layer in layers:
        position = list(float_nodes[str(layer.bias_node)].input).index(layer.bias)
        by_name[str(layer.bias_node)].input[position] = _input_of(str(layer.bias))
        copy.graph.input.append(
            onnx.helper.make_tensor_value_info(_input_of(str(layer.bias)), onnx.TensorProto.FLOAT, [None])
        )
    add_outputs(copy.graph, [by_name[str(layer.bias_node)].output[0] for layer in layers])
    options = onnxruntime.SessionOptions()
    options.log_severity_level = FATAL_ONLY
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    return open_model(copy, options)


def _input_of(bias: str) -> str:
    return f"{bias}/corrected"


def _dequantized(node: onnx.NodeProto, index: GraphIndex) -> Array:
    values, scale = (index.constant(name) for name in node.input[:2])
    zero = index.constant(node.input[2]) if len(node.input) > 2 else np.zeros_like(scale)
    if scale.size > 1:
        axis = attributes_of(node).get("axis", 1)
        shape = [1] * values.ndim
        shape[axis] = -1
        scale, zero = scale.reshape(shape), zero.reshape(shape)
    real: Array = (values.astype(np.float64) - zero.astype(np.float64)) * scale
    return real.astype(np.float32)


def _float_means(layers: Sequence[Layer], context: RepairContext) -> list[Array]:
    """The mean of every channel of every layer in the reference model, from one pass over the data."""
    names = list(dict.fromkeys(layer.output for layer in layers))
    observed = Observed(context.reference, names)
    sums = [np.zeros(1) for _ in layers]
    count = 0
    for feeds in context.feeds(MAX_SAMPLES):
        size = len(next(iter(feeds.values())))
        count += size
        for values in observed.parts(feeds):
            for index, layer in enumerate(layers):
                if (value := values.get(layer.output)) is not None:
                    sums[index] = sums[index] + size * _channel_means(value, layer)
    return [total / count for total in sums]


def _mean(
    session: onnxruntime.InferenceSession,
    tensor: str,
    layer: Layer,
    biases: dict[str, Array],
    context: RepairContext,
) -> Array:
    """The mean of every channel of one layer in the int8 model."""
    options = onnxruntime.RunOptions()
    options.only_execute_path_to_fetches = True
    given = {_input_of(name): value for name, value in biases.items()}
    total, count = np.zeros(1), 0
    for feeds in context.feeds(MAX_SAMPLES):
        size = len(next(iter(feeds.values())))
        (value,) = session.run([tensor], {**feeds, **given}, options)
        total, count = total + size * _channel_means(value, layer), count + size
    return total / count


def _channel_means(value: Array, layer: Layer) -> Array:
    axis = layer.channel_axis % value.ndim
    others = tuple(a for a in range(value.ndim) if a != axis)
    means: Array = value.mean(axis=others, dtype=np.float64)
    return means
