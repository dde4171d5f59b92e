"""Find the parameters of weights whose values the quantizer moves: those of a ConvTranspose or a Gemm.

In int8, a ConvTranspose runs as a convolution with the same weights in another order, and zeros between
them (`exporter.graphs.rewrites.transposed_convolution`). The weights and the bias of a Gemm are multiplied
by its attributes alpha and beta, and its bias gets one value for each output
(`exporter.quantization.plain_gemm`). As in `sources`, an experiment finds the order: the weights become
numbers from 1, and the plan shows where each number goes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx

from bench.core.arrays import Array
from exporter.graphs.attributes import attributes_of
from exporter.graphs.edits import copy_of, set_constant
from exporter.graphs.index import GraphIndex
from exporter.graphs.names import name_nodes
from exporter.graphs.targets import Target
from exporter.quantization.qdq import plan_qdq
from exporter.training.qat.sources import WeightSource

_PARTS = ("weight", "bias")
_GEMM_PARTS = ("weights", "c")
_EXACT = 2**23  # float32 tells smaller whole numbers apart, also after a product


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
    sizes = {tensor.name: np.prod(tensor.dims) for tensor in numbered.graph.initializer}
    moved = [
        found
        for node in numbered.graph.node
        for found in _moved(node)
        if found[1] in sources and sizes[found[1]] < _EXACT
    ]
    if not moved:
        return {}
    numbers = {old for _, old, _ in moved}
    for tensor in numbered.graph.initializer:
        if tensor.name in numbers:
            set_constant(tensor, _numbers(tuple(tensor.dims)))
    constants = GraphIndex.of(plan_qdq(numbered, target, exclude).graph.graph)
    return {
        new: replace(
            sources[old],
            places=np.rint(constants.constant(new) / np.float64(np.float32(factor))).astype(np.int64),
            factor=factor,
            shape=None,
        )
        for new, old, factor in moved
        if constants.is_constant(new)
    }


def _moved(node: onnx.NodeProto) -> list[tuple[str, str, float]]:
    """The weight and the bias of a node: their new names, their old ones, and their factors."""
    if node.op_type == "ConvTranspose":
        return [
            (f"{node.name}.blocks.{part}", name, 1.0)
            for part, name in zip(_PARTS, node.input[1:], strict=False)
        ]
    if node.op_type == "Gemm":
        attributes = attributes_of(node)
        factors = (attributes.get("alpha", 1.0), attributes.get("beta", 1.0))
        return [
            (f"{node.name}.{part}", name, factor)
            for part, name, factor in zip(_GEMM_PARTS, node.input[1:], factors, strict=False)
            if factor
        ]
    return []


def _numbers(shape: tuple[int, ...]) -> Array:
    return np.arange(1, np.prod(shape) + 1, dtype=np.float32).reshape(shape)
