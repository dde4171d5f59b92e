"""The error of each layer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from bench.core.errors import DataError
from bench.core.progress import SILENT
from bench.metrics.parity import sqnr_db
from exporter.graphs.targets import TARGETS
from exporter.inspection.inspect import inspect
from exporter.inspection.layer_errors import layer_errors, layer_samples
from exporter.pipeline.quantize_file import quantize_file
from exporter.quantization.int8 import Int8Settings, quantize_model
from exporter.sources.splits import ArraySamples


def outputs_of(path, name, feeds):
    model = onnx.load(path)
    if name not in {value.name for value in model.graph.output}:
        model.graph.output.append(onnx.ValueInfoProto(name=name))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model.SerializeToString(), options).run([name], feeds)[0]


def test_the_figures_equal_those_computed_from_the_tensors(onnx_models, splits):
    sample = splits.evaluation.take(np.arange(20))
    found = layer_errors(onnx_models.float, onnx_models.int8, sample)
    assert found
    assert {"layer", "op", "sqnr_db", "lowest", "highest", "range"} == found[0].model_dump().keys()
    names = {node.name: node for node in onnx.load(onnx_models.float).graph.node}
    for error in found:
        node = names[error.layer]
        assert error.op == node.op_type
        tensor = node.output[0]
        before = outputs_of(onnx_models.float, tensor, dict(sample.inputs))
        after = outputs_of(onnx_models.int8, f"{tensor}_DequantizeLinear_Output", dict(sample.inputs))
        assert error.sqnr_db == pytest.approx(sqnr_db(before, after), abs=0.05)
        assert (error.lowest, error.highest) == (before.min(), before.max())
        lowest, highest = error.range
        assert lowest <= after.min() <= after.max() <= highest + 1e-6
        assert lowest <= 0 <= highest


def test_a_picture_on_blocks_has_the_error_of_the_picture(tmp_path):
    generator = np.random.default_rng(0)
    model = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 20]> g (float[N, 3, 8, 8] x) => (float[N, 4, A, B] y)'
        " { [m] m = Mul(x, k)  [c] c = Conv<strides = [2, 2], pads = [1, 1, 1, 1]>(m, w)  [y] y = Relu(c) }"
    )
    for name, shape in {"w": (4, 3, 3, 3), "k": (1, 3, 1, 1)}.items():
        values = generator.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    onnx.save(model, tmp_path / "float.onnx")
    samples = ArraySamples({"x": generator.standard_normal((16, 3, 8, 8)).astype(np.float32)})
    found = []
    for on_blocks in (False, True):
        target = replace(TARGETS["x86-vnni"], stem_on_blocks=on_blocks)
        path = tmp_path / f"{on_blocks}.onnx"
        made = quantize_model(model, path, samples, Int8Settings(target), progress=SILENT)
        assert made.stem_on_blocks is on_blocks
        found.append(layer_errors(tmp_path / "float.onnx", path, samples))
    plain, moved = found
    assert [error.layer for error in plain] == ["m", "y"]
    assert moved == plain


def test_layers_are_in_graph_order(onnx_models, splits):
    order = [node.name for node in onnx.load(onnx_models.float).graph.node]
    found = [error.layer for error in layer_errors(onnx_models.float, onnx_models.int8, splits.calibration)]
    assert found == sorted(found, key=order.index)


def test_a_float_model_has_no_layer_errors(onnx_models, splits):
    assert layer_errors(onnx_models.float, onnx_models.float, splits.calibration) == ()


@pytest.fixture
def both(tmp_path):
    """Save a float model in ONNX's text form and quantize it; return both files and the samples."""

    def build(nodes, weights, shape, *, count=16, as_nodes=False, opset=18):
        axes = ", ".join(map(str, shape))
        model = onnx.parser.parse_model(
            f'<ir_version: 9, opset_import: ["" : {opset}]> g (float[{axes}] x) => (float y) {{ {nodes} }}'
        )
        model.graph.output[0].type.tensor_type.ClearField("shape")
        generator = np.random.default_rng(0)
        for name, size in weights.items():
            tensor = numpy_helper.from_array(generator.standard_normal(size).astype(np.float32), name)
            if as_nodes:
                model.graph.node.insert(0, helper.make_node("Constant", [], [name], value=tensor))
            else:
                model.graph.initializer.append(tensor)
        onnx.save(model, tmp_path / "float.onnx")
        samples = {"x": generator.standard_normal((count, *shape[1:])).astype(np.float32)}
        np.savez(tmp_path / "x.npz", **samples)
        quantize_file(tmp_path / "float.onnx", tmp_path / "x.npz", tmp_path / "int8.onnx")
        return tmp_path / "float.onnx", tmp_path / "int8.onnx", tmp_path / "x.npz"

    return build


CHAIN = "[a] a = Conv(x, w1)  [r] r = Relu(a)  [b] b = Conv(r, w2)  [s] s = Sigmoid(b)  [y] y = Conv(s, w3)"
RANKS = {
    "signals": (("N", 16, 12), (1,)),
    "pictures": (("N", 16, 6, 6), (1, 1)),
    "volumes": (("N", 16, 4, 4, 4), (1, 1, 1)),
}


@pytest.mark.parametrize("as_nodes", [False, True])
@pytest.mark.parametrize("name", RANKS)
def test_layers_of_any_rank_with_weights_anywhere(both, name, as_nodes):
    shape, kernel = RANKS[name]
    weights = {"w1": (16, 16, *kernel), "w2": (16, 16, *kernel), "w3": (4, 16, *kernel)}
    float_model, int8_model, data = both(CHAIN, weights, shape, as_nodes=as_nodes)
    found = inspect(int8_model, data=data, layers=True, float_model=float_model).layers
    assert {error.layer for error in found} >= {"r", "b"}
    assert all(error.sqnr_db > 20 and error.op != "Constant" for error in found)


@pytest.mark.parametrize(("shape", "weights"), [(("N", 6), (6, 6)), (("N", 5, 6), (6, 6))])
def test_products_of_any_rank(both, shape, weights):
    nodes = "a = MatMul(x, w1)  r = Relu(a)  b = MatMul(r, w2)  [t] t = Tanh(b)  y = MatMul(t, w3)"
    models = both(nodes, {"w1": weights, "w2": weights, "w3": weights}, shape)
    found = inspect(models[1], data=models[2], layers=True, float_model=models[0]).layers
    assert "t" in {error.layer for error in found}


@pytest.mark.parametrize(("batch", "count"), [(1, 4), (3, 9), (5, 10), (40, 40)])
def test_a_fixed_batch_is_filled(both, batch, count):
    weights = {"w1": (8, 3, 1, 1), "w2": (8, 8, 1, 1), "w3": (4, 8, 1, 1)}
    models = both(CHAIN, weights, (batch, 3, 6, 6), count=count)
    assert inspect(models[1], data=models[2], layers=True, float_model=models[0]).layers
    assert layer_samples(batch) == {1: 32, 3: 30, 5: 30, 40: 40}[batch]


def test_too_few_samples_for_a_fixed_batch(both):
    weights = {"w1": (8, 3, 1, 1), "w2": (8, 8, 1, 1), "w3": (4, 8, 1, 1)}
    float_model, int8_model, _ = both(CHAIN, weights, (4, 3, 6, 6))
    few = ArraySamples({"x": np.zeros((3, 3, 6, 6), np.float32)})
    with pytest.raises(DataError, match="3 samples do not fill one batch of 4"):
        layer_errors(float_model, int8_model, few, 4)


def test_files_of_another_quantizer(tmp_path):
    """Other names, scales in Constant nodes, and a zero point that is left out."""
    parse = onnx.parser.parse_model
    head = '<ir_version: 9, opset_import: ["" : 18]> g (float[N, 4] x) => (float[N, 4] y)'
    onnx.save(parse(head + " { [r] r = Relu(x)  [y] y = Neg(r) }"), tmp_path / "float.onnx")
    onnx.save(
        parse(
            head + " { s = Constant<value = float {0.02}>()  t = Relu(x)  r = Identity(t)"
            "  q = QuantizeLinear(r, s)  d = DequantizeLinear(q, s)  y = Neg(d) }"
        ),
        tmp_path / "int8.onnx",
    )
    samples = ArraySamples({"x": np.random.default_rng(0).random((8, 4), np.float32)})
    (found,) = layer_errors(tmp_path / "float.onnx", tmp_path / "int8.onnx", samples)
    assert (found.layer, found.range) == ("r", (0.0, pytest.approx(5.1)))
    assert found.sqnr_db > 30


def test_a_tensor_of_another_shape_is_left_out(tmp_path):
    head = '<ir_version: 9, opset_import: ["" : 18]> g (float[N, 4] x) => (float y)'
    constants = "s = Constant<value = float {0.02}>()  k = Constant<value_ints = [2, -1]>()"
    onnx.save(onnx.parser.parse_model(head + " { r = Relu(x)  y = Neg(r) }"), tmp_path / "float.onnx")
    rounded = "q = QuantizeLinear(r, s)  d = DequantizeLinear(q, s)  y = Neg(d)"
    model = onnx.parser.parse_model(f"{head} {{ {constants}  t = Relu(x)  r = Reshape(t, k)  {rounded} }}")
    onnx.save(model, tmp_path / "int8.onnx")
    samples = ArraySamples({"x": np.ones((8, 4), np.float32)})
    assert layer_errors(tmp_path / "float.onnx", tmp_path / "int8.onnx", samples) == ()
