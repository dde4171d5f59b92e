"""4-bit weights: which nodes change, which stay in float, and the accuracy."""

from __future__ import annotations

import logging
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from exporter.errors import ExportError
from exporter.graphs.targets import TARGETS
from exporter.quantization.int4 import quantize_weights

WIDTH = 64


def weights(*shape, seed=0):
    return (np.random.default_rng(seed).standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)


def network(**gemm):
    """MatMul, Gelu, then a Gemm with bias, on [N, 64]."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="first"),
        helper.make_node("Gelu", ["a"], ["b"], name="gelu"),
        helper.make_node("Gemm", ["b", "v", "c"], ["y"], name="second", **gemm),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", WIDTH])],
        [
            numpy_helper.from_array(weights(WIDTH, WIDTH), "w"),
            numpy_helper.from_array(weights(WIDTH, WIDTH, seed=1), "v"),
            numpy_helper.from_array(weights(WIDTH, seed=2), "c"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    helper.set_model_props(model, {"edgeproof.name": "net"})
    return model


def quantized(model, tmp_path, **options):
    path = tmp_path / "small.onnx"
    settings = {"block_size": 32, "exclude": (), "target": TARGETS["arm64"]} | options
    made = quantize_weights(model, path, **settings)
    return made, onnx.load(path)


def run(model):
    x = np.random.default_rng(5).standard_normal((16, WIDTH)).astype(np.float32)
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]


@pytest.mark.parametrize("gemm", [{}, {"transB": 1}])
def test_products_run_in_four_bits(tmp_path, gemm):
    model = network(**gemm)
    before = model.SerializeToString()
    made, found = quantized(model, tmp_path)
    assert [n.op_type for n in found.graph.node] == ["MatMulNBits", "Gelu", "MatMulNBits", "Add"]
    assert made.products == 2
    assert made.weight_type == "uint4"
    exact, close = run(model), run(found)
    noise = 20 * np.log10(np.linalg.norm(exact) / np.linalg.norm(exact - close))
    # 15 levels over +-2.5 standard deviations are a third of one apart: about 20 dB for each product.
    assert 13 < noise < 30
    assert model.SerializeToString() == before
    assert found.ByteSize() < model.ByteSize() / 4
    assert [(e.key, e.value) for e in found.metadata_props] == [
        ("edgeproof.min_onnxruntime", "1.22"),
        ("edgeproof.name", "net"),
        ("edgeproof.target", "arm64"),
    ]


def test_smaller_blocks_are_closer(tmp_path):
    exact = run(network())
    errors = [
        np.linalg.norm(run(quantized(network(), tmp_path, block_size=b)[1]) - exact) for b in (16, 64)
    ]
    assert errors[0] < errors[1]


@pytest.mark.parametrize("name", ["first", "second"])
def test_excluded_nodes_stay_as_they_are(tmp_path, name):
    made, found = quantized(network(), tmp_path, exclude=(name,))
    assert made.products == 1
    assert {n.name: n.op_type for n in found.graph.node}[name] in {"MatMul", "Gemm"}


def test_float_weights_with_another_reader_are_kept(tmp_path):
    model = network()
    value = helper.make_tensor_value_info("out", TensorProto.FLOAT, [WIDTH, WIDTH])
    bodies = {
        key: helper.make_graph([helper.make_node(operator, ["v"], ["out"])], key, [], [value])
        for key, operator in {"then_branch": "Relu", "else_branch": "Neg"}.items()
    }
    model.graph.node.append(helper.make_node("If", ["condition"], ["z"], name="if", **bodies))
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "condition"))
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [WIDTH, WIDTH]))
    made, found = quantized(model, tmp_path)
    assert made.products == 2
    x = np.zeros((1, WIDTH), np.float32)
    (z,) = onnxruntime.InferenceSession(found.SerializeToString()).run(["z"], {"x": x})
    np.testing.assert_array_equal(z, np.maximum(weights(WIDTH, WIDTH, seed=1), 0))


@pytest.mark.parametrize("gemm", [{"alpha": 0.5}, {"beta": 2.0}, {"transA": 1}])
def test_unusual_gemms_stay_in_float(tmp_path, gemm):
    assert quantized(network(**gemm), tmp_path)[0].products == 1


def test_an_excluded_node_must_exist(tmp_path):
    with pytest.raises(ExportError, match="no node 'third'"):
        quantized(network(), tmp_path, exclude=("third",))


def test_nothing_to_quantize_is_an_error(tmp_path):
    with pytest.raises(ExportError, match="has nothing to quantize to 4 bits"):
        quantized(network(), tmp_path, exclude=("first", "second"))
    assert not (tmp_path / "small.onnx").exists()


def test_the_users_logging_is_not_changed(tmp_path, caplog):
    logger = logging.getLogger("onnxruntime.quantization.matmul_nbits_quantizer")
    handlers, level = logging.root.handlers[:], logging.root.level
    with caplog.at_level(logging.INFO, logger.name):
        quantized(network(), tmp_path)
        assert not caplog.records
        logger.info("another message")
    assert [record.message for record in caplog.records] == ["another message"]
    assert (logging.root.handlers, logging.root.level) == (handlers, level)
    assert logging.root.manager.disable == logging.NOTSET
    assert not logger.filters


def test_an_error_of_onnxruntime_names_the_model(tmp_path):
    model = network()
    model.graph.initializer[0].raw_data = b"cut off"
    with pytest.raises(ExportError, match="net: ONNX Runtime cannot quantize it"):
        quantized(model, tmp_path)


def test_importing_the_quantizer_does_not_configure_logging():
    script = """
import logging, onnx
from exporter.quantization.ort_quantizer import quantize_products
quantize_products(onnx.ModelProto(), bits=4, block_size=32, accuracy_level=4, exclude=())
assert logging.root.handlers == [], logging.root.handlers
assert logging.root.level == logging.WARNING
"""
    subprocess.run([sys.executable, "-c", script], check=True)
