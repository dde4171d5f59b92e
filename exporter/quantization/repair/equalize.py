"""Cross-layer equalization: make channel ranges similar by moving factors from one layer to the next."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx

from bench.core.arrays import Array
from exporter.graphs.index import GraphIndex
from exporter.graphs.layers import Layer, find_layers, with_constants, with_own_biases
from exporter.graphs.observed import Observed
from exporter.quantization.repair.base import RepairContext
from exporter.results import EqualizeFigures

# For these, f(s x) = s f(x) with every s > 0, separately for each channel.
_HOMOGENEOUS = {"Relu", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "Identity", "Dropout"}
# A channel counts as unaffected by a clip if it stays below this fraction of the limit on all calibration
# samples.
CLIP_MARGIN = 0.25
MAX_SCALE = 256.0
_SWEEPS = 20
_CONVERGED = 1.01


@dataclass(frozen=True)
class Pair:
    """Two layers with only operators between them that factors can pass through.

    Attributes:
        first: the layer whose output channels are divided.
        second: the layer whose input channels are multiplied.
        limit: the upper limit of a Clip between the two layers, or infinity.
    """

    first: Layer
    second: Layer
    limit: float


def equalize(model: onnx.ModelProto, context: RepairContext) -> tuple[onnx.ModelProto, EqualizeFigures]:
    """Divide output channels of a layer by s and multiply the input channels of the next layer by s.

    The method is from Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias
    Correction" (2019), section 4.1. The float function does not change, except for rounding.

    1. Two layers are a pair if only the second layer reads the first layer's output, either directly or
       through positively homogeneous operators (Relu, pooling, ...).
    2. Clip (ReLU6) is not homogeneous, and ONNX has no limit per channel. A channel before a Clip is scaled
       only if it stays below a quarter of the limit on all calibration samples, before and after scaling.
    3. With one weight scale per tensor, s = sqrt(r1 / r2), where r1 and r2 are the ranges of the channel's
       weights in the two layers (equation 11).
    4. With a weight scale per channel, scaling does not affect the rounding of the first layer's weights.
       r1 is then the observed range of the channel's activations, which have one scale per tensor. Before
       a depthwise layer, scaling does not affect the second layer's weights either; then s = r1 / max(r1),
       and every channel fills the range.
    5. A channel with r1 = 0 or r2 = 0 does not change.
    """
    index = GraphIndex.of(with_own_biases(model).graph)
    pairs = find_pairs(index)
    if not pairs:
        return model, EqualizeFigures(pairs=0, channels=0, channels_at_a_clip=0)
    layers = {layer.node: layer for pair in pairs for layer in (pair.first, pair.second)}
    weights = {layer.weight: index.constant(layer.weight).astype(np.float64) for layer in layers.values()}
    biases = {
        pair.first.bias: index.constant(pair.first.bias).astype(np.float64)
        for pair in pairs
        if pair.first.bias is not None
    }
    peaks, tops = _channel_ranges(model, pairs, context)
    scaled: dict[str, Array] = {}
    with context.progress.task("equalize", _SWEEPS) as task:
        for _ in range(_SWEEPS):
            largest = 1.0
            for pair in pairs:
                name = pair.first.node
                held = peaks[name] if context.per_channel else _output_ranges(pair.first, weights)
                scale = _scales(pair, held, _input_ranges(pair.second, weights), context.per_channel)
                scale = _within_clip(scale, tops[name], pair.limit)
                _apply(pair, scale, weights, biases)
                peaks[name], tops[name] = peaks[name] / scale, tops[name] / scale
                scaled[name] = scaled.get(name, 1.0) * scale
                largest = max(largest, float(np.maximum(scale, 1 / scale).max()))
            task.advance()
            if largest < _CONVERGED:
                break
    repaired = with_constants(with_own_biases(model), {**weights, **biases})
    factors = np.concatenate(list(scaled.values()))
    clipped = sum(int((tops[p.first.node] > CLIP_MARGIN * p.limit).sum()) for p in pairs)
    return repaired, EqualizeFigures(
        pairs=len(pairs),
        channels=int((np.abs(np.log(factors)) > np.log(_CONVERGED)).sum()),
        channels_at_a_clip=clipped,
    )


def find_pairs(index: GraphIndex) -> list[Pair]:
    """All pairs of layers between which factors can be moved, in graph order."""
    layers = {layer.node: layer for layer in find_layers(index)}
    pairs = []
    for layer in layers.values():
        found = _follow(index, layer.output)
        if found is None or layer.bias_node is None:
            continue
        node, limit = found
        second = layers.get(node.name)
        if (
            second is None
            or second.weight == layer.weight
            or (layer.op_type == "Conv") != (second.op_type == "Conv")
        ):
            continue
        pairs.append(Pair(layer, second, limit))
    return pairs


def _follow(index: GraphIndex, tensor: str) -> tuple[onnx.NodeProto, float] | None:
    """The only layer that reads a tensor, and the lowest upper limit of the Clips before it."""
    limit = np.inf
    while (node := index.only_reader(tensor)) is not None:
        if node.op_type in {"Conv", "Gemm", "MatMul"}:
            return (node, limit) if node.input[0] == tensor else None
        if node.op_type == "Clip":
            low, high = (_bound(index, node, position) for position in (1, 2))
            if low != 0.0 or high is None:  # scaling changes which values a nonzero lower limit clips
                return None
            limit = min(limit, high)
        elif node.op_type not in _HOMOGENEOUS:
            return None
        tensor = node.output[0]
    return None


def _bound(index: GraphIndex, node: onnx.NodeProto, position: int) -> float | None:
    if len(node.input) <= position or not index.is_constant(node.input[position]):
        return None
    return float(index.constant(node.input[position]))


def _channel_ranges(
    model: onnx.ModelProto, pairs: Iterable[Pair], context: RepairContext
) -> tuple[dict[str, Array], dict[str, Array]]:
    """The largest magnitude of each channel at the second layer, and its largest value before any Clip.

    Both are keyed by the name of the first layer.
    """
    seconds = {pair.first.node: pair.second for pair in pairs}
    firsts = {pair.first.node: pair.first for pair in pairs}
    names = list(dict.fromkeys(t for n in firsts for t in (firsts[n].output, seconds[n].source)))
    observed = Observed(model, names)
    peaks: dict[str, Array] = {}
    tops: dict[str, Array] = {}
    with context.progress.task("channel ranges", context.batches()) as task:
        for feeds in context.feeds():
            for values in observed.parts(feeds):
                for name, first in firsts.items():
                    if (value := values.get(seconds[name].source)) is not None:
                        peak = _by_channel(np.abs(value), seconds[name])
                        peaks[name] = np.maximum(peaks.get(name, 0.0), peak)
                    if (value := values.get(first.output)) is not None:
                        top = _by_channel(value, first)
                        tops[name] = np.maximum(tops.get(name, -np.inf), top)
            task.advance()
    return peaks, tops


def _by_channel(value: Array, layer: Layer) -> Array:
    """The largest value of each channel, float64 [channels]."""
    moved = np.moveaxis(value, layer.channel_axis, 0)
    largest: Array = moved.reshape(len(moved), -1).max(axis=1).astype(np.float64)
    return largest


def _output_ranges(layer: Layer, weights: dict[str, Array]) -> Array:
    weight = np.abs(weights[layer.weight])
    found: Array = weight.reshape(len(weight), -1).max(axis=1) if layer.transposed else weight.max(axis=0)
    return found


def _input_view(layer: Layer, weight: Array) -> Array:
    """A view of the weights as [groups, in per group, out per group, products]."""
    if not layer.transposed:
        return weight[None, :, :, None]
    out, per_group = weight.shape[:2]
    split = weight.reshape(layer.groups, out // layer.groups, per_group, -1)
    return np.swapaxes(split, 1, 2)


def _input_ranges(layer: Layer, weights: dict[str, Array]) -> Array:
    view = np.abs(_input_view(layer, weights[layer.weight]))
    ranges: Array = view.max(axis=(2, 3)).reshape(-1)
    return ranges


def _scales(pair: Pair, first: Array, second: Array, per_channel: bool) -> Array:
    """The divisor of each channel of the first layer, by rules 3 to 5 of `equalize`."""
    alive = (first > 0) & (second > 0)
    if not alive.any():
        return np.ones_like(first)
    top = first[alive].max()
    depthwise = pair.second.groups > 1 and pair.second.groups == len(first)
    safe_first, safe_second = np.where(alive, first, top), np.where(alive, second, 1.0)
    scale = safe_first / top if per_channel and depthwise else np.sqrt(safe_first / safe_second)
    if per_channel and not depthwise:
        # Only the ratios matter. The largest channel gets the factor 1, so it comes no nearer to a Clip.
        scale = scale / scale[np.argmax(safe_first)]
    return np.where(alive, np.clip(scale, 1 / MAX_SCALE, MAX_SCALE), 1.0)


def _within_clip(scale: Array, top: Array, limit: float) -> Array:
    """Do not scale channels near the limit of a Clip; keep scaled channels away from the limit."""
    if not np.isfinite(limit):
        return scale
    room = CLIP_MARGIN * limit
    return np.where(top > room, 1.0, np.maximum(scale, np.maximum(top, 0.0) / room))


def _apply(pair: Pair, scale: Array, weights: dict[str, Array], biases: dict[str, Array]) -> None:
    first, second = pair.first, pair.second
    weight = weights[first.weight]
    shape = (-1, *[1] * (weight.ndim - 1)) if first.transposed else (1, -1)
    weights[first.weight] = weight / scale.reshape(shape)
    if first.bias is not None:
        biases[first.bias] = biases[first.bias] / scale
    view = _input_view(second, weights[second.weight])
    view *= scale.reshape(view.shape[0], view.shape[1], 1, 1)
