"""Per-layer error of an int8 model: where the difference to its float twin is made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx

from bench.parity import decibels
from exporter.data import Split
from exporter.inference import session_with_outputs

_DEQUANTIZED = "_DequantizeLinear_Output"
_BATCH = 8


def layer_errors(float_model: Path, int8_model: Path, samples: Split) -> list[dict[str, Any]]:
    """SQNR of every tensor that the quantizer rounds, in graph order.

    Both graphs run as written, without optimizations, a batch at a time; signal and noise energies are
    summed, so that memory does not grow with the number of samples.

    Returns:
        For each: `layer` (the node that makes the tensor), `op`, and `sqnr_db` = 20 log10(|x| / |x - y|).
    """
    reference, quantized = onnx.load(float_model), onnx.load(int8_model)
    available = {name for node in quantized.graph.node for name in node.output}
    tensors = [
        (node, output)
        for node in reference.graph.node
        for output in node.output
        if output + _DEQUANTIZED in available
    ]
    if not tensors:  # asked for no output, ONNX Runtime gives all
        return []
    names = [output for _, output in tensors]
    first = session_with_outputs(reference, names)
    second = session_with_outputs(quantized, [name + _DEQUANTIZED for name in names])
    signal, noise = np.zeros(len(names)), np.zeros(len(names))
    for feeds in samples.batches(_BATCH):
        before = first.run(names, feeds)
        after = second.run([name + _DEQUANTIZED for name in names], feeds)
        for index, (x, y) in enumerate(zip(before, after, strict=True)):
            signal[index] += float(np.square(x, dtype=np.float64).sum())
            noise[index] += float(np.square(x - y, dtype=np.float64).sum())
    return [
        {"layer": node.name, "op": node.op_type, "sqnr_db": decibels(signal[i], noise[i])}
        for i, (node, _) in enumerate(tensors)
    ]
