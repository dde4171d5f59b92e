"""Shapes that a file states about its tensors are forgotten, and follow from its inputs again."""

from __future__ import annotations

import numpy as np
import onnx

from exporter.graphs.stale_shapes import forget_stale_shapes

# A shortcut of a residual network, as F.pad(x[:, :, ::2, ::2], ...) is exported.
SHORTCUT = """
<ir_version: 9, opset_import: ["" : 18]>
g (float[N, 3, 8, 8] x) => (float[N, A, B, C] y)
<int64[2] zeros = {0, 0}, int64[2] ends = {99, 99}, int64[2] axes = {2, 3}, int64[2] steps = {2, 2},
 int64[8] pads = {0, 1, 0, 0, 0, 1, 0, 0}>
{
  small = Slice(x, zeros, ends, axes, steps)
  wide = Pad(small, pads)
  through = Conv<strides = [2, 2], pads = [1, 1, 1, 1]>(x, w)
  y = Add(through, wide)
}
"""


def shapes_of(model):
    found = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    values = [*found.graph.value_info, *found.graph.output]
    return {value.name: [size.dim_value for size in value.type.tensor_type.shape.dim] for value in values}


def test_what_a_file_states_about_constants_does_not_hide_their_shapes():
    model = onnx.parser.parse_model(SHORTCUT)
    weight = onnx.numpy_helper.from_array(np.ones((5, 3, 3, 3), np.float32), "w")
    model.graph.initializer.append(weight)
    for tensor in model.graph.initializer:
        model.graph.value_info.append(
            onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        )
    model.graph.value_info.append(
        onnx.helper.make_tensor_value_info("wide", onnx.TensorProto.FLOAT, [1, 7])
    )
    forget_stale_shapes(model, [])
    shapes = shapes_of(model)
    assert shapes["small"] == [0, 3, 4, 4]
    assert shapes["wide"] == shapes["through"] == [0, 5, 4, 4]
    assert {value.name for value in model.graph.value_info} == {"wide"}
