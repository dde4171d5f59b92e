"""Find the parameters of weights whose values the quantizer moves: those of a ConvTranspose.

In int8, a ConvTranspose runs as a convolution with the same weights in another order, and zeros between
them (`exporter.graphs.rewrites.transposed_convolution`). As in `sources`, an experiment finds the order:
the weights become numbers from 1, and the plan shows where each number goes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx

from bench.core.arrays import Array
from exporter.graphs.edits import copy_of, set_constant
from exporter.graphs.index import GraphIndex
from exporter.graphs.names import name_nodes
from exporter.graphs.targets import Target
from exporter.quantization.qdq import plan_qdq
from exporter.training.qat.sources import WeightSource

_PARTS = ("weight", "bias")
_EXACT = 2**24  # float32 holds smaller whole numbers exactly


def rearranged_sources(
    model: onnx.ModelProto, sources: Mapping[str, WeightSource], target: Target, exclude: tuple[str, ...]
) -> dict[str, WeightSource]:
    """The sources of the weights that the quantizer moves, by their new names.

    Args:
        model: the exported float graph.
        sources: the sources of its weights.
        target: the kind of CPU.
        exclude: nodes to leave in float.
    """
    numbered = copy_of(model)
    name_nodes(numbered)
    moved = {
        f"{node.name}.blocks.{part}": name
        for node in numbered.graph.node
        if node.op_type == "ConvTranspose"
        for part, name in zip(_PARTS, node.input[1:], strict=False)
        if name in sources
    }
    for tensor in numbered.graph.initializer:
        if tensor.name in moved.values() and np.prod(tensor.dims) < _EXACT:
            set_constant(tensor, _numbers(tuple(tensor.dims)))
    if not moved:
        return {}
    constants = GraphIndex.of(plan_qdq(numbered, target, exclude).graph.graph)
    return {
        new: replace(sources[old], places=constants.constant(new).astype(np.int64))
        for new, old in moved.items()
        if constants.is_constant(new)
    }


def _numbers(shape: tuple[int, ...]) -> Array:
    return np.arange(1, np.prod(shape) + 1, dtype=np.float32).reshape(shape)
