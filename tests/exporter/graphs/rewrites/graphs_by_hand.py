"""Small float graphs for tests of rewrites: write them as steps, run them, and compare before and after."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from onnx import TensorProto, helper, numpy_helper


def build(steps, constants, shape, *, opset=17, outputs=("y",)):
    """A model of one input `x` and outputs of unknown shape.

    Args:
        steps: (operator, inputs, output, attributes) for each node.
        constants: name -> array or number; float64 becomes float32.
        shape: the shape of `x`; an axis may be a name.
    """
    contents = {name: np.asarray(value) for name, value in constants.items()}
    contents = {n: c.astype(np.float32) if c.dtype == np.float64 else c for n, c in contents.items()}
    graph = helper.make_graph(
        [
            helper.make_node(kind, list(ins), [out], name=f"n_{out}", **more)
            for kind, ins, out, more in steps
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [numpy_helper.from_array(content, name) for name, content in contents.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def operators(model):
    return [node.op_type for node in model.graph]


def outputs_of(model, x):
    settings = onnxruntime.SessionOptions()
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), settings)
    return session.run(None, {"x": x})


def check_rewrite(model, rewrites, x):
    """Apply rewrites, check that the outputs keep their names and values, and return the operators."""
    before, names = outputs_of(model, x), [value.name for value in model.graph.outputs]
    for rewrite in rewrites:
        rewrite(model)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    assert [value.name for value in model.graph.outputs] == names
    for first, second in zip(before, outputs_of(model, x), strict=True):
        assert first.shape == second.shape
        assert np.allclose(first, second, rtol=1e-4, atol=1e-4 * max(1.0, float(np.abs(first).max())))
    return operators(model)
