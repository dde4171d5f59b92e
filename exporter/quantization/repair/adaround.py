"""AdaRound: round weights to minimise the error of the layer's output instead of each weight's error."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from bench.core.arrays import Array
from exporter.graphs.attributes import attributes_of
from exporter.graphs.index import GraphIndex
from exporter.graphs.layers import Layer, find_layers, from_rows, rows, with_constants
from exporter.graphs.observed import Observed
from exporter.quantization.repair.base import RepairContext
from exporter.results import AdaRoundFigures

MAX_SAMPLES = 128
# Positions of a convolution observed in each sample. Neighbouring positions hold nearly the same values.
MAX_POSITIONS = 256
# A layer with more products per output needs a matrix of more than 256 MiB.
MAX_PRODUCTS = 8192
CHUNK_BYTES = 256 * 2**20
_SWEEPS = 8


@dataclass(frozen=True, kw_only=True)
class _Work:
    """A layer with its weights and their rounding grid.

    Attributes:
        layer: the layer.
        node: the node of the layer in the float model.
        shape: the shape of the weights in the model.
        weight: the weights, [groups, out per group, products].
        scale: the scale of each output channel, [groups, out per group, 1].
        highest: the largest integer of each output channel, [groups, out per group, 1].
    """

    layer: Layer
    node: onnx.NodeProto
    shape: tuple[int, ...]
    weight: Array
    scale: Array
    highest: Array

    @property
    def gram_bytes(self) -> int:
        groups, _, products = self.weight.shape
        return int(4 * groups * products * products)


def adaround(model: onnx.ModelProto, context: RepairContext) -> tuple[onnx.ModelProto, AdaRoundFigures]:
    """Choose for every weight, layer by layer, whether to round it up or down.

    The objective is from Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization"
    (2020), equation 13: minimise d H d over the rounding errors d of an output channel, H = E[x x^T] over
    the layer's observed inputs x. The paper relaxes the choice and uses gradients. This function uses
    coordinate descent from nearest rounding: it flips single weights while this lowers the objective. The
    descent is deterministic, needs only H and terminates.

    The result is a float model whose weights are on the quantizer's grid, so the quantizer's nearest
    rounding yields the chosen integers. The largest weight of each channel does not change, because the
    scale depends on it.

    1. The rounding error of a weight stays below the distance of two levels.
    2. Weights on the grid do not change; this includes the zeros of pruned networks.
    3. Layers with more than 8,192 products per output or with automatic padding do not change.
    """
    work = list(_find_work(model, context.qdq_model(model)))
    rounded: dict[str, Array] = {}
    flipped = weights = 0
    before = after = 0.0
    with context.progress.task("adaround", len(work)) as task:
        for chunk in _chunks(work):
            grams = _grams(model, chunk, context)
            for item, gram in zip(chunk, grams, strict=True):
                nearest = _nearest(item)
                error, chosen = choose_rounding(item.weight, item.scale, item.highest, nearest, gram)
                rounded[item.layer.weight] = _on_grid(item, nearest, chosen)
                flipped += int((chosen != nearest).sum())
                weights += chosen.size
                before, after = before + 1, after + error
                task.advance()
    return with_constants(model, rounded), AdaRoundFigures(
        layers=len(work),
        flipped_share=flipped / weights if weights else 0.0,
        # Mean over layers of d H d as a fraction of its value for nearest rounding.
        local_error_ratio=after / before if before else 1.0,
    )


def choose_rounding(
    weight: Array, scale: Array, highest: Array, nearest: Array, gram: Array
) -> tuple[float, Array]:
    """Choose integers for the weights that minimise the error of the layer's output.

    Args:
        weight: the float weights, [groups, out, products].
        scale: the scale of each output channel, [groups, out, 1].
        highest: the largest integer of each output channel, [groups, out, 1]; the smallest is its negative.
        nearest: the integers of nearest rounding, from which the search starts.
        gram: E[x x^T] of each group, [groups, products, products].

    Returns:
        The objective of `adaround` as a fraction of its value for `nearest`, and the integers.
    """
    exact = weight / scale
    fixed = np.abs(weight) == np.abs(weight).max(axis=2, keepdims=True)
    low, high = np.floor(exact), np.ceil(exact)
    movable = ~fixed & (high <= highest) & (low >= -highest) & (high > low)
    chosen = nearest.copy()
    error = (chosen - exact) * scale
    gradient = error @ gram
    first = float((error * gradient).sum())
    order = np.argsort(-np.diagonal(gram, axis1=1, axis2=2).sum(axis=0), kind="stable")
    for _ in range(_SWEEPS):
        flips = 0
        for k in order:
            direction = np.where(chosen[:, :, k] == low[:, :, k], 1.0, -1.0)
            delta = direction * scale[:, :, 0]
            change = 2 * delta * gradient[:, :, k] + delta**2 * gram[:, k, k][:, None]
            flip = movable[:, :, k] & (change < -1e-9 * np.abs(gram[:, k, k][:, None]) * delta**2)
            if not flip.any():
                continue
            flips += int(flip.sum())
            chosen[:, :, k] += np.where(flip, direction, 0.0)
            moved = np.where(flip, delta, 0.0)
            groups, channels = np.nonzero(flip)
            gradient[groups, channels] += moved[groups, channels, None] * gram[groups, k]
        if not flips:
            break
    error = (chosen - exact) * scale
    last = float((error * (error @ gram)).sum())
    return (last / first if first > 0 else 1.0), chosen


def _find_work(model: onnx.ModelProto, quantized: onnx.ModelProto) -> Iterator[_Work]:
    index, int8 = GraphIndex.of(model.graph), GraphIndex.of(quantized.graph)
    for layer in find_layers(index):
        node = int8.by_name.get(layer.node)
        dequantize = None if node is None else int8.maker(node.input[1], "DequantizeLinear")
        if dequantize is None:
            continue
        if not int8.is_constant(dequantize.input[0]) or not _plain_padding(index.by_name[layer.node]):
            continue
        integers_, scale, zero_point = (int8.constant(name) for name in dequantize.input)
        weight = index.constant(layer.weight)
        matrix = rows(layer, weight).astype(np.float64)
        if zero_point.any() or integers_.dtype != np.int8 or matrix.shape[1] > MAX_PRODUCTS:
            continue
        grouped = matrix.reshape(layer.groups, -1, matrix.shape[1])
        scales = np.broadcast_to(scale.astype(np.float64).reshape(-1, 1), (len(matrix), 1))
        largest = np.abs(rows(layer, integers_).astype(np.float64)).max(axis=1)
        yield _Work(
            layer=layer,
            node=index.by_name[layer.node],
            shape=weight.shape,
            weight=grouped,
            scale=scales.reshape(layer.groups, -1, 1),
            highest=largest.reshape(layer.groups, -1, 1),
        )


def _plain_padding(node: onnx.NodeProto) -> bool:
    return node.op_type != "Conv" or attributes_of(node).get("auto_pad", "NOTSET") == "NOTSET"


def _chunks(work: Sequence[_Work]) -> Iterator[list[_Work]]:
    """Divide the layers into chunks to observe together; the matrices of a chunk fit in `CHUNK_BYTES`."""
    chunk: list[_Work] = []
    for item in work:
        if chunk and sum(w.gram_bytes for w in chunk) + item.gram_bytes > CHUNK_BYTES:
            yield chunk
            chunk = []
        chunk.append(item)
    if chunk:
        yield chunk


def _grams(model: onnx.ModelProto, chunk: Sequence[_Work], context: RepairContext) -> list[Array]:
    """Compute E[x x^T] of each layer's inputs in the float model."""
    names = list(dict.fromkeys(item.layer.source for item in chunk))
    grams = [np.zeros((w.weight.shape[0], *w.weight.shape[2:] * 2), np.float32) for w in chunk]
    observed = Observed(model, names)
    count = 0
    for feeds in context.feeds(MAX_SAMPLES):
        count += len(next(iter(feeds.values())))
        for values in observed.parts(feeds):
            for item, gram in zip(chunk, grams, strict=True):
                if (value := values.get(item.layer.source)) is not None:
                    columns = observed_products(item.node, value, item.shape, item.layer.groups)
                    np.add(gram, np.swapaxes(columns, 1, 2) @ columns, out=gram)
    return [gram.astype(np.float64) / max(count, 1) for gram in grams]


def observed_products(node: onnx.NodeProto, value: Array, shape: Sequence[int], groups: int) -> Array:
    """The input values that a layer multiplies its weights by, [groups, observations, products].

    A convolution is observed at up to `MAX_POSITIONS` evenly spaced positions of each sample.
    """
    if node.op_type != "Conv":
        return value.reshape(1, -1, value.shape[-1])
    kernel = list(shape[2:])
    axes = len(kernel)
    attributes = attributes_of(node)
    pads = attributes.get("pads", [0] * 2 * axes)
    dilations, strides = (attributes.get(name, [1] * axes) for name in ("dilations", "strides"))
    padded = np.pad(value, [(0, 0), (0, 0), *zip(pads[:axes], pads[axes:], strict=True)])
    sizes = [
        (size - d * (k - 1) - 1) // s + 1
        for size, k, d, s in zip(padded.shape[2:], kernel, dilations, strides, strict=True)
    ]
    total = int(np.prod(sizes))
    places = np.linspace(0, total - 1, min(total, MAX_POSITIONS)).astype(int)
    corners = [p * s for p, s in zip(np.unravel_index(places, sizes), strides, strict=True)]
    taps = []
    for offsets in itertools.product(*(range(k) for k in kernel)):
        where = tuple(c + o * d for c, o, d in zip(corners, offsets, dilations, strict=True))
        taps.append(padded[(..., *where)])  # [N, channels, places]
    products = np.stack(taps, axis=-1)
    samples, channels = products.shape[:2]
    split = products.reshape(samples, groups, channels // groups, len(places), -1)
    return np.ascontiguousarray(split.transpose(1, 0, 3, 2, 4)).reshape(groups, samples * len(places), -1)


def _nearest(item: _Work) -> Array:
    return np.clip(np.rint(item.weight / item.scale), -item.highest, item.highest)


def _on_grid(item: _Work, nearest: Array, chosen: Array) -> Array:
    """Float weights that the quantizer rounds to `chosen`; weights with nearest rounding do not change."""
    largest = np.abs(item.weight).max(axis=2, keepdims=True)
    moved = np.clip(chosen * item.scale, -largest, largest)
    matrix = np.where(chosen == nearest, item.weight, moved).reshape(-1, item.weight.shape[2])
    return from_rows(item.layer, matrix.astype(np.float32), item.shape)
