"""Names that the quantizer gives to what it adds are kept free."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from exporter.graphs.rewrites import FreeNamesPass
from exporter.pipeline.quantize_file import quantize_file

R = np.random.default_rng(0)
X = R.standard_normal((32, 8)).astype(np.float32)
WEIGHTS = {name: R.standard_normal((8, 8)).astype(np.float32) for name in ("w", "v")} | {
    "b": R.standard_normal(8).astype(np.float32)
}
ADDED = [
    "quantized", "scale", "zero_point", "QuantizeLinear", "QuantizeLinear_Input", "QuantizeLinear_Output",
    "DequantizeLinear", "DequantizeLinear_Output",
]  # fmt: skip


def network(names, nodes=None):
    """Gemm, Relu, Gemm; `names` replaces names of tensors, `nodes` names of nodes."""

    def named(*tensors):
        return [names.get(tensor, tensor) for tensor in tensors]

    nodes = nodes or ["first", "relu", "second"]
    graph = helper.make_graph(
        [
            helper.make_node("Gemm", named("x", "w", "b"), named("h"), name=nodes[0]),
            helper.make_node("Relu", named("h"), named("z"), name=nodes[1]),
            helper.make_node("Gemm", named("z", "v", "b"), named("y"), name=nodes[2]),
        ],
        "net",
        [helper.make_tensor_value_info(*named("x"), onnx.TensorProto.FLOAT, ["n", 8])],
        [helper.make_tensor_value_info(*named("y"), onnx.TensorProto.FLOAT, ["n", 8])],
        [numpy_helper.from_array(value, *named(name)) for name, value in WEIGHTS.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def renamed(model):
    converted = ir.from_proto(model)
    modified = FreeNamesPass()(converted).modified
    return ir.to_proto(converted), modified


def check_quantized(model, tmp_path):
    """Quantize a model, and compare the outputs with those in float."""
    path, data, out = (tmp_path / name for name in ("m.onnx", "x.npz", "o.onnx"))
    onnx.save(model, path)
    np.savez(data, **{value.name: X for value in model.graph.input})
    quantize_file(path, data, out, target="x86-vnni")
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")  # the CPU may lack VNNI
    found = []
    for file in (path, out):
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        assert [value.name for value in session.get_inputs()] == [v.name for v in model.graph.input]
        assert [value.name for value in session.get_outputs()] == [v.name for v in model.graph.output]
        found.append(session.run(None, {value.name: X for value in model.graph.input}))
    for wanted, got in zip(*found, strict=True):
        assert np.linalg.norm(wanted - got) < 0.05 * np.linalg.norm(wanted)


@pytest.mark.parametrize("added", ADDED)
@pytest.mark.parametrize(("tensor", "base"), [("v", "w"), ("h", "x"), ("z", "w"), ("y", "x"), ("x", "h")])
def test_tensors_with_a_name_that_is_needed(tmp_path, added, tensor, base):
    check_quantized(network({tensor: f"{base}_{added}"}), tmp_path)


@pytest.mark.parametrize("tensor", ["h", "y", "x", "v"])
def test_a_name_like_the_copy_of_a_shared_bias(tmp_path, tensor):
    check_quantized(network({tensor: "b0"}), tmp_path)


def test_nodes_with_a_name_that_is_needed(tmp_path):
    nodes = ["x_QuantizeLinear", "w_DequantizeLinear", "x_DequantizeLinear"]
    check_quantized(network({}, nodes), tmp_path)


@pytest.mark.parametrize("names", [("h", "h_scale", "h_scale_scale"), ("y", "y_scale", "y_quantized")])
def test_chains_of_names(tmp_path, names):
    check_quantized(network(dict(zip(("y", "h", "z"), names, strict=True))), tmp_path)


def test_several_outputs_named_after_the_input(tmp_path):
    model = network({"z": "x_scale", "y": "x_quantized"})
    model.graph.output.append(helper.make_tensor_value_info("x_scale", onnx.TensorProto.FLOAT, ["n", 8]))
    check_quantized(model, tmp_path)


def test_usual_names_do_not_change():
    model = network({"h": "x1", "z": "layer.scale", "y": "the_scale", "v": "w2"})
    assert renamed(model) == (ir.to_proto(ir.from_proto(model)), False)


def test_bodies_read_the_new_names():
    model = network({"h": "x_scale"})
    body = helper.make_graph(
        [helper.make_node("Neg", ["x_scale"], ["w_scale"])],
        "b",
        [],
        [helper.make_empty_tensor_value_info("w_scale")],
    )
    model.graph.node.append(
        helper.make_node("If", ["flag"], ["choice"], then_branch=body, else_branch=body)
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "flag"))
    found, modified = renamed(model)
    (branch, _) = (attribute.g for attribute in found.graph.node[-1].attribute)
    assert modified
    assert branch.node[0].input == ["x_scale_2"] == list(found.graph.node[0].output)
