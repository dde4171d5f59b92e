"""The oldest ONNX Runtime of a model, from its opset, its IR version, its operators and their types."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bench.core.errors import ModelError
from bench.inputs.runtime import METADATA_KEY, OLDEST, RuntimeVersion, stated_version
from exporter.graphs.kernels import (
    check_runtime_asked,
    kernel_version,
    oldest_runtime,
    state_oldest_runtime,
)

INT8, UINT8 = TensorProto.INT8, TensorProto.UINT8
OLDEST_REASON = "edgeproof supports no older version"


def one_operator(
    kind, element=TensorProto.FLOAT, *, inputs=1, opset=17, ir_version=8, domain="", **attributes
):
    names = [f"x{k}" for k in range(inputs)]
    graph = helper.make_graph(
        [helper.make_node(kind, names, ["y"], name="node", domain=domain, **attributes)],
        "g",
        [helper.make_tensor_value_info(name, element, [1, 4, 4, 4]) for name in names],
        [helper.make_tensor_value_info("y", element, None)],
    )
    opsets = [helper.make_opsetid("", opset), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir_version)


@pytest.mark.parametrize(
    ("model", "version", "reason"),
    [
        (one_operator("Relu"), (1, 22), "edgeproof supports no older version"),
        (one_operator("SpaceToDepth", blocksize=2), (1, 22), "edgeproof supports no older version"),
        (one_operator("SpaceToDepth", UINT8, blocksize=2), (1, 28), "SpaceToDepth of uint8 ('node')"),
        (one_operator("SpaceToDepth", INT8, blocksize=2), (1, 28), "SpaceToDepth of int8 ('node')"),
        (one_operator("Max", INT8, inputs=2), (1, 24), "Max of int8 ('node')"),
        (one_operator("DeformConv", inputs=3, opset=22), (1, 25), "DeformConv ('node')"),
        (one_operator("MatMul", TensorProto.FLOAT16, inputs=2), (1, 22), OLDEST_REASON),
        (one_operator("Relu", opset=22), (1, 22), OLDEST_REASON),
        (one_operator("Relu", opset=23, ir_version=10), (1, 24), "opset 23"),
        (one_operator("Relu", opset=24), (1, 24), "opset 24"),
        (one_operator("LpNormalization", opset=21), (1, 22), OLDEST_REASON),
        (one_operator("LpNormalization", opset=22), (1, 25), "LpNormalization of opset 22"),
        (one_operator("Relu", opset=26), (1, 25), "opset 26"),
        (one_operator("Relu", ir_version=11), (1, 23), "IR version 11"),
        (one_operator("Relu", ir_version=12), (1, 24), "IR version 12"),
        (one_operator("GatedAdd", domain="com.microsoft"), (1, 30), "GatedAdd ('node')"),
        (one_operator("GatedAdd", domain="somebody.else"), (1, 22), OLDEST_REASON),
    ],
)  # fmt: skip
def test_the_reason_for_a_version_is_named(model, version, reason):
    need = oldest_runtime(model)
    assert (need.version, need.reason) == (version, reason)


def test_types_that_only_inference_finds_count():
    """The file does not state the type of the quantized tensor that SpaceToDepth reads."""
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
            helper.make_node("SpaceToDepth", ["q"], ["blocks"], name="move", blocksize=2),
            helper.make_node("DequantizeLinear", ["blocks", "scale", "zero"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.float32(0.1), "scale"), numpy_helper.from_array(np.uint8(3), "zero")],
    )
    assert (
        oldest_runtime(
            helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        ).reason
        == "SpaceToDepth of uint8 ('move')"
    )


def test_operators_in_branches_count():
    inner = one_operator("SpaceToDepth", TensorProto.UINT8, blocksize=2).graph
    inner.node[0].input[0] = "outer"  # the type of a tensor outside the branch
    del inner.input[:]
    graph = helper.make_graph(
        [helper.make_node("If", ["condition"], ["y"], then_branch=inner, else_branch=inner)],
        "g",
        [
            helper.make_tensor_value_info("condition", TensorProto.BOOL, []),
            helper.make_tensor_value_info("outer", TensorProto.UINT8, [1, 4, 4, 4]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, None)],
    )
    assert oldest_runtime(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    ).version == (1, 28)


def test_a_revised_operator_counts_in_a_branch_too():
    inner = one_operator("LpNormalization").graph
    inner.node[0].input[0] = "outer"
    del inner.input[:]
    graph = helper.make_graph(
        [helper.make_node("If", ["condition"], ["y"], then_branch=inner, else_branch=inner)],
        "g",
        [
            helper.make_tensor_value_info("condition", TensorProto.BOOL, []),
            helper.make_tensor_value_info("outer", TensorProto.FLOAT, [1, 4, 4, 4]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    for opset, version in ((21, (1, 22)), (22, (1, 25))):
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
        assert oldest_runtime(model).version == version


def test_the_version_of_a_kernel_depends_on_its_operator_and_its_type():
    assert kernel_version("Conv", "float") == OLDEST
    assert kernel_version("SpaceToDepth", "uint8") == (1, 28)
    assert kernel_version("DeformConv", "float") == (1, 25)
    assert kernel_version("GroupQueryAttention", "int8", "com.microsoft") == (1, 27)


def test_the_oldest_runtime_is_added_to_the_metadata(tmp_path):
    model = one_operator("Max", INT8, inputs=2)
    helper.set_model_props(model, {"author": "somebody", METADATA_KEY: "1.0"})
    assert state_oldest_runtime(model) == (1, 24)
    onnx.save(model, tmp_path / "m.onnx")
    assert stated_version(tmp_path / "m.onnx") == (1, 24)
    assert {entry.key: entry.value for entry in model.metadata_props} == {
        "author": "somebody",
        METADATA_KEY: "1.24",
    }


def test_a_network_that_needs_a_newer_runtime_than_requested_is_rejected():
    model = one_operator("DeformConv", inputs=3, opset=22)
    check_runtime_asked(model, RuntimeVersion(1, 25), "m.onnx")
    with pytest.raises(ModelError) as caught:
        check_runtime_asked(model, RuntimeVersion(1, 24), "m.onnx")
    assert str(caught.value) == (
        "m.onnx: cannot run on ONNX Runtime 1.24: DeformConv ('node') requires 1.25; "
        'set onnxruntime to ">=1.25", or change the network'
    )
