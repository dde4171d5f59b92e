"""Repairs: which of them keep the float function, and how much they improve int8."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from bench.core.progress import SILENT
from bench.metrics.parity import sqnr_db
from exporter.graphs.index import GraphIndex
from exporter.graphs.inference import session_with_outputs
from exporter.graphs.layers import find_layers, with_constants_of, with_own_biases
from exporter.graphs.names import name_nodes
from exporter.graphs.targets import TARGETS
from exporter.quantization.int8 import Int8Settings
from exporter.quantization.repair import RepairContext
from exporter.quantization.repair.adaround import adaround, choose_rounding, observed_products
from exporter.quantization.repair.bias_correction import correct_bias, simulation
from exporter.quantization.repair.equalize import CLIP_MARGIN, equalize, find_pairs
from exporter.quantization.repair.qdq_models import calibrated
from exporter.quantization.repair.score import outputs_of
from exporter.quantization.repair.smooth import smooth

PER_CHANNEL = TARGETS["x86-vnni"]
PER_TENSOR = dataclasses.replace(PER_CHANNEL, per_channel=False)


def node(operator, inputs, output, **attributes):
    return helper.make_node(operator, inputs.split(), [output], name=f"{output}.node", **attributes)


def build(nodes, constants, shape=("batch", 3, 8, 8), output=("batch", 4)):
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, output)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def indexed(model):
    return GraphIndex.of(model.graph)


def normal(*shape, seed=0, scale=1.0):
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def convolutions(activation="Relu", limit=6.0, size=1.0):
    """Conv, activation, depthwise Conv, activation, Conv, pool, Gemm; the second conv has no bias."""
    bounds = " low high" if activation == "Clip" else ""
    nodes = [
        node("Conv", "x w1 b1", "a", pads=[1, 1, 1, 1]),
        node(activation, f"a{bounds}", "ar"),
        node("Conv", "ar w2", "d", pads=[1, 1, 1, 1], group=8),
        node(activation, f"d{bounds}", "dr"),
        node("Conv", "dr w3 b3", "p"),
        node("GlobalAveragePool", "p", "g"),
        node("Flatten", "g", "f"),
        node("Gemm", "f w4 b4", "y", transB=1),
    ]
    # The channel ranges differ by powers of ten, and the next layer cancels this. It is hard only in int8.
    uneven = np.logspace(-2.5, 0, 8).astype(np.float32)
    constants = {
        "w1": normal(8, 3, 3, 3, seed=1, scale=size) * uneven[:, None, None, None],
        "b1": normal(8, seed=2, scale=size) * uneven,
        "w2": normal(8, 1, 3, 3, seed=3) / uneven[:, None, None, None],
        "w3": normal(6, 8, 1, 1, seed=4),
        "b3": normal(6, seed=5),
        "w4": normal(4, 6, seed=6),
        "b4": normal(4, seed=7),
    }
    if activation == "Clip":
        constants |= {"low": np.float32(0), "high": np.float32(limit)}
    return build(nodes, constants)


@pytest.fixture
def samples():
    return {"x": normal(48, 3, 8, 8, seed=9)}


def prepared(model, inputs, target=PER_CHANNEL):
    """A builder of int8 models, and the context for a repair."""
    models = calibrated(model, inputs, Int8Settings(target), SILENT)
    return models, RepairContext(
        inputs=inputs,
        batch_size=8,
        reference=model,
        qdq_model=models.make,
        per_channel=target.per_channel,
        progress=SILENT,
    )


def int8_sqnr(model, reference, inputs, target=PER_CHANNEL, ranges_of=None):
    models, _ = prepared(ranges_of or model, inputs, target)
    return sqnr_db(outputs_of(reference, inputs, 8), outputs_of(models.make(model), inputs, 8))


@pytest.mark.parametrize("target", [PER_CHANNEL, PER_TENSOR])
def test_equalization_keeps_the_float_function_and_helps_int8(samples, target):
    model = convolutions()
    _, context = prepared(model, samples, target)
    repaired, found = equalize(model, context)
    assert found.pairs == 2
    assert found.channels_at_a_clip == 0
    assert sqnr_db(outputs_of(model, samples, 8), outputs_of(repaired, samples, 8)) > 100
    gain = int8_sqnr(repaired, model, samples, target) - int8_sqnr(model, model, samples, target)
    assert gain > 3


def test_a_chain_of_gemms_is_equalized():
    uneven = np.logspace(-3, 0, 16).astype(np.float32)
    weights = {
        "w1": normal(16, 8, seed=1) * uneven[:, None],
        "w2": normal(16, 4, seed=2) / uneven[:, None],
    }
    nodes = [node("Gemm", "x w1", "a", transB=1), node("Relu", "a", "r"), node("MatMul", "r w2", "y")]
    model = build(nodes, weights, shape=("batch", 8))
    inputs = {"x": normal(64, 8, seed=3)}
    _, context = prepared(model, inputs)
    repaired, found = equalize(model, context)
    assert found.pairs == 1
    assert sqnr_db(outputs_of(model, inputs, 8), outputs_of(repaired, inputs, 8)) > 100
    assert int8_sqnr(repaired, model, inputs) > int8_sqnr(model, model, inputs) + 10


def test_channels_that_reach_a_clip_stay_as_they_are(samples):
    limit = 2.0
    model = convolutions("Clip", limit=limit)
    _, context = prepared(model, samples)
    before = session_with_outputs(model, ["a", "ar"]).run(["a"], samples)[0].max(axis=(0, 2, 3))
    repaired, found = equalize(model, context)
    after = session_with_outputs(repaired, ["a", "ar"]).run(["a"], samples)[0].max(axis=(0, 2, 3))
    near = before > CLIP_MARGIN * limit
    assert 0 < near.sum() < 8
    np.testing.assert_allclose(after[near], before[near], rtol=1e-6)
    assert (after[~near] <= CLIP_MARGIN * limit * (1 + 1e-5)).all()
    assert (after[~near] > before[~near] * 1.1).any()
    assert found.channels_at_a_clip >= near.sum()
    assert sqnr_db(outputs_of(model, samples, 8), outputs_of(repaired, samples, 8)) > 100


@pytest.mark.parametrize(
    "between",
    [
        [node("Clip", "a low high", "r")],  # its lower limit is -1, not 0
        [node("Sigmoid", "a", "r")],
        [node("Relu", "a", "q"), node("Add", "q a", "r")],  # two readers
    ],
    ids=["clip from below", "sigmoid", "branch"],
)
def test_factors_do_not_pass_operators_that_are_not_homogeneous(between):
    nodes = [node("Conv", "x w1", "a"), *between, node("Conv", "r w2", "y")]
    constants = {"w1": normal(4, 3, 1, 1), "w2": normal(4, 4, 1, 1), "low": np.float32(-1)}
    model = build(nodes, {**constants, "high": np.float32(1)}, output=("batch", 4, 8, 8))
    assert find_pairs(indexed(model)) == []


def test_dead_channels_give_finite_weights_and_outputs(samples):
    model = convolutions()
    for initializer in model.graph.initializer:
        if initializer.name in {"w1", "b1", "w2"}:
            value = numpy_helper.to_array(initializer).copy()
            value[0] = 0
            initializer.CopyFrom(numpy_helper.from_array(value, initializer.name))
    for repair in (equalize, adaround, correct_bias):
        _, context = prepared(model, samples)
        repaired, _ = repair(model, context)
        assert all(np.isfinite(numpy_helper.to_array(i)).all() for i in repaired.graph.initializer)
        _, context = prepared(repaired, samples)
        assert np.isfinite(outputs_of(context.qdq_model(repaired), samples, 8)).all()


@given(st.integers(1, 3), st.integers(1, 4), st.integers(2, 9), st.integers(0, 2**32 - 1), st.booleans())
def test_no_single_flip_reduces_the_error_further(groups, out, products, seed, zeros):
    generator = np.random.default_rng(seed)
    weight = generator.standard_normal((groups, out, products))
    if zeros:
        weight[..., 1] = 0
    scale = np.abs(weight).max(axis=2, keepdims=True) / 7
    seen = generator.standard_normal((groups, 30, products)) + generator.standard_normal(
        (groups, 1, products)
    )
    gram = np.swapaxes(seen, 1, 2) @ seen
    nearest = np.rint(weight / scale)
    ratio, chosen = choose_rounding(weight, scale, np.full_like(scale, 7), nearest, gram)

    def error(integers):
        difference = integers * scale - weight
        return ((difference @ gram) * difference).sum(axis=2)

    assert (error(chosen) <= error(nearest) * (1 + 1e-9)).all()
    assert ratio * error(nearest).sum() == pytest.approx(error(chosen).sum(), abs=1e-12)
    assert (np.abs(chosen * scale - weight) < scale * (1 + 1e-9)).all()
    assert np.abs(chosen).max() <= 7
    largest = np.abs(weight) == np.abs(weight).max(axis=2, keepdims=True)
    assert (chosen[largest] == nearest[largest]).all()
    if zeros:
        assert not chosen[..., 1].any()
    for k in range(products):
        exact = weight[:, :, k] / scale[:, :, 0]
        other = chosen.copy()
        other[:, :, k] = np.where(chosen[:, :, k] == np.floor(exact), np.ceil(exact), np.floor(exact))
        free = ~largest[:, :, k]
        assert (error(other)[free] >= error(chosen)[free] * (1 - 1e-6)).all()


@pytest.mark.parametrize(
    ("groups", "attributes"),
    [
        (1, {"pads": [1, 0, 2, 1]}),
        (2, {"strides": [2, 1], "pads": [1, 1, 1, 1]}),
        (4, {"dilations": [2, 2], "pads": [2, 2, 2, 2]}),
    ],
)
def test_observed_products_are_those_of_the_convolution(groups, attributes):
    weight, value = normal(8, 4 // groups, 3, 3), normal(2, 4, 9, 9, seed=1)
    convolution = node("Conv", "x w", "y", group=groups, **attributes)
    model = build([convolution], {"w": weight}, shape=("batch", 4, 9, 9), output=("batch", 8, None, None))
    wanted = session_with_outputs(model, []).run(None, {"x": value})[0]
    columns = observed_products(convolution, value, weight.shape, groups)
    got = columns @ np.swapaxes(weight.reshape(groups, 8 // groups, -1), 1, 2)
    got = got.reshape(groups, 2, -1, 8 // groups).transpose(1, 0, 3, 2).reshape(wanted.shape)
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)


def weights_of(quantized):
    """Integers and scale of each layer's weights."""
    constants = {i.name: numpy_helper.to_array(i) for i in quantized.graph.initializer}
    dequantize = [
        n for n in quantized.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in constants
    ]
    return {
        n.input[0]: tuple(constants[name] for name in n.input[:2])
        for n in dequantize
        if constants[n.input[0]].dtype == np.int8
    }


@pytest.mark.parametrize("target", [PER_CHANNEL, PER_TENSOR, TARGETS["portable"], TARGETS["arm64"]])
def test_the_quantizer_rounds_to_what_adaround_chose(samples, target):
    model = convolutions()
    models, context = prepared(model, samples, target)
    repaired, found = adaround(model, context)
    assert found.layers == 4
    assert 0 < found.flipped_share < 0.5
    assert found.local_error_ratio < 0.9
    before, after = weights_of(models.make(model)), weights_of(models.make(repaired))
    assert before.keys() == after.keys()
    changed = 0
    graph = indexed(repaired)
    for name, (integers, scale) in after.items():
        np.testing.assert_array_equal(scale, before[name][1])
        weight = graph.constant(name.removesuffix("_quantized"))
        shape = (-1, *[1] * (weight.ndim - 1)) if scale.size > 1 else ()
        near = np.abs(weight / scale.reshape(shape) - integers)
        moved = integers != before[name][0]
        assert (near[moved] < 1e-3).all()  # flipped weights are on the grid
        assert np.abs(integers.astype(int) - before[name][0]).max() <= 1
        changed += int(moved.sum())
    total = sum(integers.size for integers, _ in after.values())
    assert changed == round(found.flipped_share * total)


def test_adaround_improves_the_output():
    """The inputs are correlated: errors of nearest rounding add up, and AdaRound makes them cancel."""
    weight = normal(64, 4)
    weight[0] = 10  # makes the levels coarse
    model = build([node("MatMul", "x w", "y")], {"w": weight}, shape=("batch", 64))
    inputs = {"x": 1 + normal(64, 64, seed=1, scale=0.05)}
    inputs["x"][:, 0] = 0
    _, context = prepared(model, inputs)
    repaired, _ = adaround(model, context)
    gain = int8_sqnr(repaired, model, inputs, ranges_of=model) - int8_sqnr(model, model, inputs)
    assert gain > 6


def test_automatic_padding_is_left_to_the_quantizer(samples):
    nodes = [node("Conv", "x w", "y", auto_pad="SAME_UPPER")]
    model = build(nodes, {"w": normal(4, 3, 3, 3)}, output=("batch", 4, 8, 8))
    _, context = prepared(model, samples)
    repaired, found = adaround(model, context)
    assert found.layers == 0
    assert repaired == model


@pytest.mark.parametrize("target", [PER_CHANNEL, PER_TENSOR])
def test_corrected_means_are_those_of_float(samples, target):
    model = convolutions()
    models, context = prepared(model, samples, target)
    inputs = {"x": samples["x"][:32]}  # the samples that the means are computed from
    repaired, found = correct_bias(model, context)
    assert found.layers == 4  # the depthwise convolution got a bias
    assert found.largest_correction > 1e-3
    layers = find_layers(indexed(repaired))
    wanted = session_with_outputs(model, [layer.output for layer in layers])

    def errors(of):
        biased = with_own_biases(of)
        graph = indexed(biased)
        session = simulation(biased, models.make(biased), find_layers(graph))
        biases = {f"{layer.bias}/corrected": graph.constant(layer.bias) for layer in find_layers(graph)}
        nodes = {n.name: n.output[0] for n in models.make(biased).graph.node}
        for layer in find_layers(graph):
            (got,) = session.run([nodes[layer.node]], {**inputs, **biases})
            (reference,) = wanted.run([layer.output], inputs)
            axes = tuple(axis for axis in range(got.ndim) if axis != 1)
            yield float(np.abs(reference.mean(axis=axes) - got.mean(axis=axes)).max())

    before, after = list(errors(model)), list(errors(repaired))
    assert max(before) > 1e-3
    assert max(after) < 1e-4


def feed_forward(residual):
    """Norm, MatMul, Gelu, MatMul. One channel of the norm is 60 times larger than the others.

    With `residual`, a sum reads the norm's result too.
    """
    nodes = [
        helper.make_node("LayerNormalization", ["x", "gain", "shift"], ["n"], name="norm"),
        node("MatMul", "n w1", "h"),
        node("Gelu", "h", "g"),
        node("MatMul", "g w2", "m" if residual else "y"),
        *([node("Add", "m n", "y")] if residual else []),
    ]
    gain = np.where(np.arange(16) == 3, 60, 1).astype(np.float32)
    constants = {
        "gain": gain,
        "shift": normal(16, seed=1),
        "w1": normal(16, 32, seed=2) / gain[:, None],
        "w2": normal(32, 16, seed=3),
    }
    model = build(nodes, constants, shape=("batch", 5, 16), output=("batch", 5, 16))
    model.opset_import[0].version = 20
    return model


@pytest.mark.parametrize("residual", [False, True])
def test_smoothing_keeps_the_float_function_and_helps_int8(residual):
    model, inputs = feed_forward(residual), {"x": normal(40, 5, 16, seed=4)}
    before = model.SerializeToString()
    repaired, found = smooth(model, prepared(model, inputs)[1])
    onnx.checker.check_model(repaired)
    assert sqnr_db(outputs_of(model, inputs, 8), outputs_of(repaired, inputs, 8)) > 100
    assert int8_sqnr(repaired, model, inputs) > int8_sqnr(model, model, inputs) + 3
    assert found.product_noise_ratio < 0.5
    # With `residual`, a sum reads the norm's result too. The factors are then in a Mul, not in the norm.
    assert [n.op_type for n in repaired.graph.node].count("Mul") == found.smoothed - found.folded
    assert found.folded == (0 if residual else 1)
    assert model.SerializeToString() == before


def test_results_of_int8_nodes_are_not_smoothed(samples):
    """A convolution's result is already rounded, so a factor after it cannot help."""
    model = convolutions()
    repaired, found = smooth(model, prepared(model, samples)[1])
    assert (found.smoothed, repaired) == (0, model)


def test_channels_of_zeros_are_not_smoothed():
    model, inputs = feed_forward(residual=False), {"x": normal(40, 5, 16, seed=4)}
    for name in ("gain", "shift"):
        entry = next(i for i in model.graph.initializer if i.name == name)
        value = numpy_helper.to_array(entry).copy()
        value[5] = 0
        entry.CopyFrom(numpy_helper.from_array(value, name))
    repaired, _ = smooth(model, prepared(model, inputs)[1])
    got = outputs_of(repaired, inputs, 8)
    assert np.isfinite(got).all()
    assert sqnr_db(outputs_of(model, inputs, 8), got) > 100


def test_the_add_after_a_matmul_is_its_bias():
    nodes = [
        node("MatMul", "x w1", "a"),
        node("Add", "b1 a", "s"),
        node("Relu", "s", "r"),
        node("MatMul", "r w2", "y"),
    ]
    constants = {"w1": normal(8, 8), "b1": normal(8, seed=1), "w2": normal(8, 4, seed=2)}
    model = build(nodes, constants, shape=("batch", 5, 8), output=("batch", 5, 4))
    inputs = {"x": normal(24, 5, 8, seed=3)}
    first, second = find_layers(indexed(model))
    assert (first.bias, first.bias_node, first.output) == ("b1", "s.node", "s")
    assert (second.bias, second.bias_node, second.output) == (None, None, "y")
    _, context = prepared(model, inputs)
    repaired, found = correct_bias(model, context)
    assert found.layers == 1
    assert (indexed(repaired).constant("b1") != constants["b1"]).any()
    assert len(repaired.graph.node) == len(model.graph.node)


def test_a_shared_bias_becomes_two():
    nodes = [node("Conv", "x w1 b", "a"), node("Conv", "a w2 b", "y")]
    constants = {"w1": normal(4, 3, 1, 1), "w2": normal(4, 4, 1, 1), "b": normal(4)}
    model = with_own_biases(build(nodes, constants, output=("batch", 4, 8, 8)))
    names = [layer.bias for layer in find_layers(indexed(model))]
    assert len(set(names)) == 2
    assert all((indexed(model).constant(name) == constants["b"]).all() for name in names)


def test_only_constants_with_one_reader_are_taken_from_another_model():
    nodes = [node("Conv", "x w1 b", "a"), node("Conv", "a w2 b", "y")]
    constants = {"w1": normal(4, 3, 1, 1), "w2": normal(4, 4, 1, 1), "b": normal(4)}
    bent, plain = (
        build(nodes, {name: value + shift for name, value in constants.items()}, output=("batch", 4, 8, 8))
        for shift in (1, 0)
    )
    before = bent.SerializeToString()
    mixed = indexed(with_constants_of(bent, plain, ("a.node",)))
    np.testing.assert_array_equal(mixed.constant("w1"), constants["w1"])
    np.testing.assert_array_equal(mixed.constant("w2"), constants["w2"] + 1)
    np.testing.assert_array_equal(mixed.constant("b"), constants["b"] + 1)
    assert bent.SerializeToString() == before


def test_layers_that_cannot_be_repaired_are_not_found():
    shared, alpha, dynamic = (
        [node("MatMul", "x w", "a"), node("MatMul", "a w", "y")],
        [node("Gemm", "x w", "y", alpha=2.0)],
        [node("Transpose", "x", "t"), node("MatMul", "x t", "y")],
    )
    for nodes in (shared, alpha, dynamic):
        model = build(nodes, {"w": normal(4, 4)}, shape=("batch", 4))
        assert find_layers(indexed(model)) == []
        inputs = {"x": normal(8, 4)}
        _, context = prepared(model, inputs) if nodes is not dynamic else (None, None)
        if context is not None:
            assert equalize(model, context)[0] == model
            assert correct_bias(model, context)[1].layers == 0


def test_nodes_get_unique_names():
    model = convolutions()
    for entry in model.graph.node[:3]:
        entry.name = ""
    model.graph.node[4].name = model.graph.node[5].name = "twice"
    name_nodes(model)
    names = [entry.name for entry in model.graph.node]
    assert len(set(names)) == len(names)
    assert names[:3] == ["a", "ar", "d"]
    assert names[4:6] == ["twice", "twice_2"]
    onnx.checker.check_model(model)
