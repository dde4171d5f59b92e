"""Store sparse constants with all their zeros, as ONNX Runtime does when it loads a file.

onnx-ir does not read sparse constants, and the quantizer looks for weights among the dense ones.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from exporter.graphs.index import bodies_of


def make_dense(graph: onnx.GraphProto) -> None:
    """Replace sparse initializers and sparse values of Constant nodes, in place and in bodies too."""
    graph.initializer.extend(_dense(sparse) for sparse in graph.sparse_initializer)
    del graph.sparse_initializer[:]
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "sparse_value":
                attribute.CopyFrom(helper.make_attribute("value", _dense(attribute.sparse_tensor)))
        for body in bodies_of(node):
            make_dense(body)


def _dense(sparse: onnx.SparseTensorProto) -> onnx.TensorProto:
    """The tensor of a sparse one. Its positions are flat [n], or one index for each axis [n, rank]."""
    values, positions = (numpy_helper.to_array(tensor) for tensor in (sparse.values, sparse.indices))
    dense = np.zeros(tuple(sparse.dims), values.dtype)
    if positions.ndim == 1:
        dense.reshape(-1)[positions] = values
    else:
        dense[tuple(positions.T)] = values
    return numpy_helper.from_array(dense, sparse.values.name)
