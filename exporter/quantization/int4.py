"""4-bit weights with a scale per block, for networks whose size is mostly weights of MatMul and Gemm."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from exporter.errors import ExportError
from exporter.graphs.attributes import attributes_of
from exporter.graphs.edits import add_constant, copy_of, remove_constants, replace_nodes
from exporter.graphs.float_reasons import EXCLUDED
from exporter.graphs.index import GraphIndex
from exporter.graphs.names import name_nodes
from exporter.graphs.node_patterns import named_nodes
from exporter.graphs.targets import Target
from exporter.quantization.embedding_tables import quantize_tables
from exporter.quantization.ort_quantizer import quantize_products
from exporter.quantization.output import Accept, accept_all, write_quantized
from exporter.results import Int4Model

BITS: Final = 4
# MatMulNBits with int8 sums: it rounds activations block by block at run time. Measured on MiniLM-L6
# (batch 1, 32 tokens, one thread, AVX512-VNNI): 1.6 x the speed of float; 1.2 x with float sums. The cosine
# is the same.
_INT8_SUMS = 4


def quantize_weights(
    model: onnx.ModelProto,
    destination: Path,
    *,
    block_size: int,
    exclude: Collection[str],
    target: Target,
    accept: Accept = accept_all,
) -> Int4Model:
    """Write a float model with the weights of MatMul and Gemm in 4 bits.

    ONNX Runtime's quantizer replaces every MatMul with a constant matrix by MatMulNBits; a Gemm is first
    split into MatMul and Add. Each block of `block_size` weights along the summed axis has a scale and a
    zero point (asymmetric: cosine 0.980 on MiniLM-L6; symmetric blocks: 0.975). Convolutions have no 4-bit
    kernel and stay in float. No calibration is needed.

    Args:
        model: the float model.
        destination: the file to write.
        block_size: weights per scale: 16, 32, 64, 128 or 256.
        exclude: nodes to leave in float, by name, module or pattern (`exporter.graphs.node_patterns`).
        target: the kind of CPU to quantize for. All kinds have the kernel.
        accept: called with the finished file before it is moved to `destination`; may raise to reject it.

    Raises:
        ExportError: an excluded node does not exist, there is nothing to quantize, or ONNX Runtime
            rejects the model.
    """
    copy = copy_of(model)
    exclude = named_nodes(copy, exclude)
    name_nodes(copy)
    _split_gemms(copy.graph, exclude)
    quantized = quantize_products(
        copy, bits=BITS, block_size=block_size, accuracy_level=_INT8_SUMS, exclude=exclude
    )
    count = sum(node.op_type == "MatMulNBits" for node in quantized.graph.node)
    if not count:
        raise ExportError(
            model.graph.name or "model",
            f"has nothing to quantize to {BITS} bits: no MatMul or Gemm with constant weights is left",
            "set bits = 8, for example for a convolutional network, or exclude fewer nodes",
        )
    tables = quantize_tables(quantized)
    needed = write_quantized(
        quantized, model, destination, target, accept=accept, reasons=dict.fromkeys(exclude, EXCLUDED)
    )
    return Int4Model(
        target=target.name,
        activation_type="float32",
        weight_type=f"uint{BITS}",
        tables=tables,
        min_onnxruntime=needed,
        bits=BITS,
        block_size=block_size,
        products=count,
    )


def _split_gemms(graph: onnx.GraphProto, exclude: Collection[str]) -> None:
    """Replace every plain Gemm with constant weights by an equivalent MatMul and Add."""
    index = GraphIndex.of(graph)
    nodes: list[onnx.NodeProto] = []
    for node in index.nodes:
        weight = index.constants.get(node.input[1]) if node.op_type == "Gemm" else None
        attributes = attributes_of(node)
        plain = attributes.get("alpha", 1.0) == attributes.get("beta", 1.0) == 1.0
        if weight is None or weight.data_type != TensorProto.FLOAT or not plain:
            nodes.append(node)
            continue
        if attributes.get("transA", 0) or node.name in exclude:
            nodes.append(node)
            continue
        content = numpy_helper.to_array(weight)
        matrix = f"{node.name}.matrix"
        turned = np.ascontiguousarray(content.T if attributes.get("transB", 0) else content)
        add_constant(graph, matrix, turned)
        biased = len(node.input) > 2 and bool(node.input[2])
        product = f"{node.output[0]}.product" if biased else node.output[0]
        nodes.append(helper.make_node("MatMul", [node.input[0], matrix], [product], name=node.name))
        if biased:
            addition = [product, node.input[2]]
            nodes.append(helper.make_node("Add", addition, [node.output[0]], name=f"{node.name}.bias"))
    replace_nodes(graph, nodes)
    after = GraphIndex.of(graph)
    remove_constants(graph, {name for name in index.constants if not after.uses(name)})
