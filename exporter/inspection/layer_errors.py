"""Measure the error of each layer of an int8 model against the float model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx

from bench.metrics.parity import decibels
from exporter.graphs.index import GraphIndex
from exporter.graphs.inference import session_with_outputs
from exporter.graphs.rewrites.first_convolution import blocks_of, on_blocks
from exporter.results import LayerError
from exporter.sources.splits import Samples

_DEQUANTIZED = "_DequantizeLinear_Output"
_BATCH = 8
# More samples do not change the ranking of the layers.
LAYER_SAMPLES = 32


def layer_errors(float_model: Path, int8_model: Path, samples: Samples) -> tuple[LayerError, ...]:
    """Measure the error of every tensor that the quantizer rounds, in graph order.

    Both graphs run without optimizations, batch by batch. Signal and noise energies are summed, so memory
    does not grow with the number of samples.
    """
    reference, quantized = onnx.load(float_model), onnx.load(int8_model)
    available = GraphIndex.of(quantized.graph)
    tensors = [
        (node, output)
        for node in reference.graph.node
        for output in node.output
        if available.maker(output + _DEQUANTIZED) is not None
    ]
    if not tensors:  # for an empty list of outputs, ONNX Runtime returns all outputs
        return ()
    names = [output for _, output in tensors]
    first = session_with_outputs(reference, names)
    second = session_with_outputs(quantized, [name + _DEQUANTIZED for name in names])
    signal, noise = np.zeros(len(names)), np.zeros(len(names))
    lowest, highest = np.full(len(names), np.inf), np.full(len(names), -np.inf)
    ranges = _representable(available)
    moved = {name for name in names if available.maker(blocks_of(name)) is not None}
    for feeds in samples.batches(_BATCH):
        before = first.run(names, feeds)
        after = second.run([name + _DEQUANTIZED for name in names], feeds)
        for index, (name, value, y) in enumerate(zip(names, before, after, strict=True)):
            x = on_blocks(value) if name in moved else value
            signal[index] += float(np.square(x, dtype=np.float64).sum())
            noise[index] += float(np.square(x - y, dtype=np.float64).sum())
            lowest[index] = min(lowest[index], float(x.min()))
            highest[index] = max(highest[index], float(x.max()))
    return tuple(
        LayerError(
            layer=node.name,
            op=node.op_type,
            sqnr_db=decibels(signal[i], noise[i]),
            lowest=float(lowest[i]),
            highest=float(highest[i]),
            range=ranges[name + _DEQUANTIZED],
        )
        for i, (node, name) in enumerate(tensors)
    )


def _representable(graph: GraphIndex) -> dict[str, tuple[float, float]]:
    """The lowest and highest representable value of each dequantized activation."""
    found = {}
    for node in graph.nodes:
        if node.op_type != "DequantizeLinear" or graph.is_constant(node.input[0]):
            continue
        scale, zero = (graph.constant(name) for name in node.input[1:3])
        limits = np.iinfo(zero.dtype)
        ends = [(end - int(zero.ravel()[0])) * float(scale.ravel()[0]) for end in (limits.min, limits.max)]
        found[node.output[0]] = (ends[0], ends[1])
    return found
