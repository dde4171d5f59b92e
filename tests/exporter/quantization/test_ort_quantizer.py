"""The indexed quantizer builds the same model as ONNX Runtime's own, byte for byte."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnxruntime.quantization import CalibrationMethod, QuantType
from onnxruntime.quantization.calibrate import TensorData, TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.quant_utils import add_infer_metadata, compute_data_quant_params
from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

from exporter.errors import ExportError
from exporter.graphs.ranges import Range
from exporter.graphs.targets import TARGETS

# private: _weight_qparams replaces a function of ONNX Runtime, so it is compared with that one
from exporter.quantization.ort_quantizer import (
    QuantizerOptions,
    _weight_qparams,
    rounded_tensors,
    run_quantizer,
)
from exporter.quantization.placement import Placement

FLOAT = onnx.TensorProto.FLOAT
GENERATOR = np.random.default_rng(0)


def normal(*shape):
    return GENERATOR.standard_normal(shape).astype(np.float32)


def model(nodes, weights, inputs, outputs):
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return onnx.shape_inference.infer_shapes(made, data_prop=True)


def convolutional():
    """A residual block with every operator that the quantizer treats specially.

    Its tensors y and r3 are read inside the graph and are outputs too.
    """
    weights = {
        "w1": normal(4, 3, 3, 3),
        "b": normal(4),  # shared by two convolutions
        "w2": normal(4, 4, 3, 3) * np.array([0, 1, 1e-30, 1e3], np.float32).reshape(4, 1, 1, 1),
        "huge": normal(4) * np.float32(1e9),  # requires a larger weight scale
        "w3": normal(4, 4, 1, 1),
        "low": np.float32(0),
        "high": np.float32(6),
        "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64),
        "shape": np.array([0, -1], np.int64),
        "fc": normal(64, 5),
        "unused": normal(7),
    }
    nodes = [
        helper.make_node("Pad", ["x", "pads"], ["padded"], name="pad"),
        helper.make_node("Conv", ["padded", "w1", "b"], ["c1"], name="conv1"),
        helper.make_node("Relu", ["c1"], ["r1"], name="relu1"),
        helper.make_node("Conv", ["r1", "w2", "b"], ["c2"], name="conv2", pads=[1, 1, 1, 1]),
        helper.make_node("Clip", ["c2", "low", "high"], ["r2"], name="clip"),
        helper.make_node("Conv", ["r2", "w3", "huge"], ["c3"], name="conv3"),
        helper.make_node("Add", ["c3", "r1"], ["sum"], name="add"),
        helper.make_node("Relu", ["sum"], ["r3"], name="relu3"),
        helper.make_node("MaxPool", ["r3"], ["p"], name="pool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Concat", ["p", "p"], ["joined"], name="concat", axis=1),
        helper.make_node("Sigmoid", ["joined"], ["gate"], name="sigmoid"),
        helper.make_node("Mul", ["joined", "gate"], ["gated"], name="mul"),
        helper.make_node("AveragePool", ["gated"], ["means"], name="means", kernel_shape=[1, 1]),
        helper.make_node("Reshape", ["means", "shape"], ["flat"], name="reshape"),
        helper.make_node("MatMul", ["half", "fc"], ["y"], name="fc"),
        helper.make_node("Slice", ["flat", "from", "to", "axes"], ["half"], name="slice"),
        helper.make_node("Softmax", ["y"], ["z"], name="softmax"),
    ]
    bounds = {name: np.array([v], np.int64) for name, v in (("from", 0), ("to", 64), ("axes", 1))}
    nodes[-3], nodes[-2] = nodes[-2], nodes[-3]
    return model(
        nodes,
        weights | bounds,
        {"x": ["n", 3, 8, 8]},
        {"z": ["n", 5], "y": ["n", 5], "r3": ["n", 4, 8, 8]},
    )


def attention():
    """MatMul with constant weights, MatMul of two activations, Transpose, Where and LayerNormalization."""
    weights = {
        "wq": normal(8, 8),
        "bq": normal(8),
        "wk": normal(8, 8),
        "gain": normal(8),
        "shift": normal(8),
        "minus": np.float32(-50),
        "mask": np.array([True, False, True, True]),
    }
    nodes = [
        helper.make_node("LayerNormalization", ["x", "gain", "shift"], ["n"], name="norm"),
        helper.make_node("MatMul", ["n", "wq"], ["q0"], name="q"),
        helper.make_node("Add", ["q0", "bq"], ["q1"], name="q_bias"),
        helper.make_node("MatMul", ["n", "wk"], ["k"], name="k"),
        helper.make_node("Transpose", ["k"], ["kt"], name="transpose", perm=[0, 2, 1]),
        helper.make_node("MatMul", ["q1", "kt"], ["scores"], name="scores"),
        helper.make_node("Where", ["mask", "scores", "minus"], ["masked"], name="where"),
        helper.make_node("Softmax", ["masked"], ["weights"], name="softmax"),
        helper.make_node("MatMul", ["weights", "n"], ["y"], name="out"),
    ]
    return model(nodes, weights, {"x": ["b", 4, 8]}, {"y": ["b", 4, 8]})


def ranges_of(graph):
    generator = np.random.default_rng(1)
    names = [*(value.name for value in graph.input), *(name for node in graph.node for name in node.output)]
    return {name: Range(-float(generator.random()), 3 * float(generator.random())) for name in names}


def everywhere(source, target="x86-vnni", exclude=(), **options):
    """Options that quantize every operator that the quantizer knows, even without a kernel on the CPU."""
    operators = frozenset({*QLinearOpsRegistry, *QDQRegistry})
    names = frozenset(node.name for node in source.graph.node) - set(exclude)
    return QuantizerOptions(
        dataclasses.replace(TARGETS[target], operators=operators), Placement(names, frozenset()), **options
    )


def theirs(source, ranges, options, **extra):
    """The model that ONNX Runtime's unmodified quantizer builds."""
    copy = onnx.ModelProto()
    copy.CopyFrom(source)
    add_infer_metadata(copy)
    data = {
        name: TensorData(lowest=np.float32(r.lowest), highest=np.float32(r.highest))
        for name, r in ranges.items()
    }
    target = options.target
    quantizer = QDQQuantizer(
        copy,
        target.per_channel,
        False,
        QuantType.QInt8,
        QuantType.QInt8 if target.signed_activations else QuantType.QUInt8,
        TensorsData(CalibrationMethod.MinMax, data),
        sorted(options.placement.nodes),
        [],
        sorted(target.operators),
        extra,
    )
    quantizer.quantize_model()
    quantizer.model.topological_sort()
    return quantizer.model.model


@pytest.mark.parametrize("target", ["x86-vnni", "x86-avx2", "arm64"])
@pytest.mark.parametrize(
    ("build", "exclude"),
    [
        (convolutional, ()),
        (convolutional, ("conv2", "relu3", "pool")),
        (attention, ()),
        (attention, ("norm", "softmax")),
    ],
)
def test_the_model_equals_onnxruntimes_byte_for_byte(build, exclude, target):
    source = build()
    before = source.SerializeToString()
    ranges = ranges_of(source.graph)
    options = everywhere(source, target, exclude)
    found = run_quantizer(source, ranges, options)
    wanted = theirs(source, ranges, options)
    assert [node.name for node in found.graph.node] == [node.name for node in wanted.graph.node]
    assert found.SerializeToString(deterministic=True) == wanted.SerializeToString(deterministic=True)
    assert source.SerializeToString() == before
    assert any(node.op_type == "QuantizeLinear" for node in found.graph.node)


def test_overrides_of_particular_weights_are_applied():
    source = convolutional()
    ranges = ranges_of(source.graph)
    told = {"w1": [{"axis": 0, "rmin": -float(c), "rmax": float(c)} for c in (1, 2, 3, 4)]}
    options = everywhere(source, overrides=told)
    found = run_quantizer(source, ranges, options)
    wanted = theirs(source, ranges, options, TensorQuantOverrides=told)
    assert found.SerializeToString(deterministic=True) == wanted.SerializeToString(deterministic=True)
    assert (
        found.SerializeToString() != run_quantizer(source, ranges, everywhere(source)).SerializeToString()
    )


def test_the_placements_float_results_stay_in_float():
    source = convolutional()
    options = everywhere(source)
    kept = dataclasses.replace(options, placement=Placement(options.placement.nodes, frozenset({"y"})))
    assert set(rounded_tensors(source, options)) - set(rounded_tensors(source, kept)) == {"y"}
    found = run_quantizer(source, ranges_of(source.graph), kept)
    assert not any(node.op_type == "QuantizeLinear" and node.input[0] == "y" for node in found.graph.node)


def test_an_empty_placement_quantizes_nothing():
    source = convolutional()
    options = QuantizerOptions(TARGETS["x86-vnni"], Placement(frozenset(), frozenset()))
    assert rounded_tensors(source, options) == []
    assert run_quantizer(source, {}, options) == source


def test_only_the_ranges_of_rounded_tensors_matter():
    source = convolutional()
    options = everywhere(source)
    everything = ranges_of(source.graph)
    rounded = rounded_tensors(source, options)
    assert set(rounded) < set(everything)
    whole, needed = (
        run_quantizer(source, ranges, options).SerializeToString(deterministic=True)
        for ranges in (everything, {name: everything[name] for name in rounded})
    )
    assert whole == needed
    # Most of these ranges change the model; the others are of tensors that take over another one's range.
    changed = {
        name
        for name in rounded
        if run_quantizer(source, everything | {name: Range(-9.0, 9.0)}, options).SerializeToString(
            deterministic=True
        )
        != whole
    }
    assert len(changed) > len(rounded) / 2


def test_an_error_of_the_quantizer_names_the_model():
    source = convolutional()
    broken = {name: Range(0.0, float("nan")) for name in ranges_of(source.graph)}
    with pytest.raises(ExportError, match="net: ONNX Runtime cannot quantize it"):
        run_quantizer(source, broken, everywhere(source))


@pytest.mark.parametrize("reduce_range", [False, True])
@pytest.mark.parametrize("least", [None, -0.3, 0.0, 1.234567891234, 1e-45, -1e30])
@pytest.mark.parametrize("most", [None, 0.31, 0.0, -2.0, 7.7777777777])
def test_overridden_ranges_have_the_scales_of_onnx_runtime(reduce_range, least, most):
    for shift in (0, 3, -3):
        data = normal(7) + np.float32(shift)
        options = {"reduce_range": reduce_range, "rmin_override": least, "rmax_override": most}
        wanted = compute_data_quant_params(data, onnx.TensorProto.INT8, True, **options)
        found = _weight_qparams(data, onnx.TensorProto.INT8, True, **options)
        assert [(v.dtype, v.tobytes()) for v in found] == [(v.dtype, v.tobytes()) for v in wanted]
