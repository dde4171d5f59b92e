"""The saturation audit, compared with a simple simulation of one scalar at a time."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from bench.core.progress import SILENT
from bench.metrics.parity import EXACT_SQNR_DB
from exporter.graphs.inference import session_with_outputs
from exporter.graphs.targets import TARGETS
from exporter.inspection.saturation import int8_layers, observe_saturation, pair_sums, vpmaddubsw_dot
from exporter.inspection.saturation import observe as observe_module
from exporter.inspection.saturation import reduce as reduce_module
from exporter.quantization.int8 import Int8Settings, quantize_model
from exporter.sources.splits import ArraySamples

LEAST, MOST = -(2**15), 2**15 - 1


def pairs(row, column):
    """Sums of two neighbouring products; the last one may have no neighbour."""
    products = [int(a) * int(w) for a, w in zip(row, column, strict=True)]
    return [sum(products[k : k + 2]) for k in range(0, len(products), 2)]


def saturated(row, column):
    return sum(max(LEAST, min(MOST, pair)) for pair in pairs(row, column))


WEIGHTS = {
    "random": lambda rng, shape: rng.integers(-128, 128, shape),
    "all 127": lambda rng, shape: np.full(shape, 127),
    "all -128": lambda rng, shape: np.full(shape, -128),
    "alternating": lambda rng, shape: np.resize([127, -127], math.prod(shape)).reshape(shape),
    "at the edge": lambda rng, shape: rng.integers(62, 67, shape),
    "small": lambda rng, shape: rng.integers(-64, 65, shape),
}
BYTES = {
    "random": lambda rng, shape: rng.integers(0, 256, shape),
    "all 255": lambda rng, shape: np.full(shape, 255),
    "0 and 255": lambda rng, shape: rng.choice([0, 255], shape),
    "small": lambda rng, shape: rng.integers(0, 100, shape),
}
weights = st.sampled_from(sorted(WEIGHTS))
activations = st.sampled_from(sorted(BYTES))
seeds = st.integers(0, 2**16)


def draw(kind, maker, seed, shape, dtype):
    return maker[kind](np.random.default_rng(seed), shape).astype(dtype)


@given(st.tuples(*map(st.integers, (1, 1, 1), (4, 9, 4))), weights, activations, seeds)
def test_the_dot_product_equals_the_scalar_simulation(sizes, weight, activation, seed):
    m, k, n = sizes
    a = draw(activation, BYTES, seed, (m, k), np.uint8)
    w = draw(weight, WEIGHTS, seed + 1, (k, n), np.int8)
    wanted = [[saturated(row, column) for column in w.T] for row in a]
    found = vpmaddubsw_dot(a, w)
    assert found.dtype == np.int32
    assert found.tolist() == wanted


def test_many_rows_are_processed_in_blocks(monkeypatch):
    a = draw("random", BYTES, 0, (50, 7), np.uint8)
    w = draw("random", WEIGHTS, 1, (7, 3), np.int8)
    whole = vpmaddubsw_dot(a, w)
    # Smaller blocks: real layers have several only with thousands of rows.
    monkeypatch.setattr("exporter.inspection.saturation.dot._ROWS", 8)
    assert (vpmaddubsw_dot(a, w) == whole).all()


def test_sums_of_32_bits_wrap():
    a, w = np.full((1, 2**17), 255, np.uint8), np.full((2**17, 1), 64, np.int8)
    assert vpmaddubsw_dot(a, w)[0, 0] == (2**17 * 255 * 64 + 2**31) % 2**32 - 2**31


def qdq_model(op, weight, zero_point, shape, *, signed=False, **attributes):
    """One layer with an activation scale of 1 and a weight scale of 1/2.

    Float activations equal the bytes minus the zero point.
    """
    kind = np.int8 if signed else np.uint8
    constants = {
        "one": np.float32(1),
        "half": np.float32(0.5),
        "zp": np.asarray(zero_point - 128 * signed, kind),
        "wzp": np.int8(0),
        "w_quantized": weight,
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "one", "zp"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "one", "zp"], ["d"]),
        helper.make_node("DequantizeLinear", ["w_quantized", "half", "wzp"], ["w"]),
        helper.make_node(op, ["d", "w"], ["y"], name="layer", **attributes),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def check(model, value, zero_point, sums, channel_bounds):
    """Compare the observation of a model with expected sums.

    Args:
        model: a quantized model with one layer.
        value: the activation bytes.
        zero_point: zero point of the activations.
        sums: output channel -> (activations, weights) of each of its sums.
        channel_bounds: returns (lowest, highest) of each k for an output channel.
    """
    feeds = {"x": value.astype(np.float32) - zero_point}
    found = observe_saturation(model, [feeds])
    can = 0
    for channel, rows in sums.items():
        bounds = channel_bounds(channel)
        column = rows[0][1]
        edges = [
            pair
            for k in range(0, len(column), 2)
            for corner in itertools.product(*bounds[k : k + 2])
            for pair in pairs(corner, column[k : k + 2])
        ]
        can += min(edges) < LEAST or max(edges) > MOST
    if not can:
        assert found == ()
        return
    (layer,) = found
    flat = [row for rows in sums.values() for row in rows]
    errors = [sum(pairs(a, w)) - saturated(a, w) for a, w in flat]
    exact = [sum((int(x) - zero_point) * int(y) for x, y in zip(a, w, strict=True)) for a, w in flat]
    signal, noise = sum(float(x) ** 2 for x in exact), sum(float(x) ** 2 for x in errors)
    assert layer.channels == can
    assert layer.observed_share == pytest.approx(sum(e != 0 for e in errors) / len(errors))
    if noise and signal:
        assert layer.drift_sqnr_db == pytest.approx(10 * math.log10(signal / noise), abs=0.01)
    elif not noise:
        assert layer.drift_sqnr_db == EXACT_SQNR_DB


CONVOLUTIONS = {
    "groups": st.integers(1, 2),
    "inputs": st.integers(1, 5),
    "outputs": st.integers(1, 3),
    "kernel": st.tuples(st.integers(1, 3), st.integers(1, 2)),
    "pads": st.tuples(*[st.integers(0, 1)] * 4),
    "stride": st.integers(1, 2),
    "dilation": st.integers(1, 2),
    "zero_point": st.sampled_from([0, 7, 128, 255]),
    "signed": st.booleans(),
}


@settings(max_examples=60)
@given(st.builds(SimpleNamespace, **CONVOLUTIONS), weights, activations, seeds)
def test_convolutions_match_the_scalar_simulation(conv, weight, activation, seed):
    assume(conv.inputs > 1 or conv.outputs > 1)  # depthwise convolutions have another kernel
    channels = conv.groups * conv.inputs
    w = draw(weight, WEIGHTS, seed, (conv.groups * conv.outputs, conv.inputs, *conv.kernel), np.int8)
    value = draw(activation, BYTES, seed + 1, (2, channels, 5, 4), np.uint8)
    model = qdq_model(
        "Conv",
        w,
        conv.zero_point,
        ["N", channels, 5, 4],
        signed=conv.signed,
        group=conv.groups,
        pads=conv.pads,
        strides=[conv.stride] * 2,
        dilations=[conv.dilation] * 2,
    )
    top, left, bottom, right = conv.pads
    padded = np.full((2, channels, 5 + top + bottom, 4 + left + right), conv.zero_point)
    padded[:, :, top : top + 5, left : left + 4] = value
    places = list(itertools.product(*map(range, conv.kernel)))
    rows, columns = (
        (size - (k - 1) * conv.dilation - 1) // conv.stride + 1
        for size, k in zip(padded.shape[2:], conv.kernel, strict=True)
    )
    sums = {}
    for channel in range(len(w)):
        first = channel // conv.outputs * conv.inputs
        for sample, row, column in itertools.product(range(2), range(rows), range(columns)):
            a, b = [], []
            for (y, x), c in itertools.product(places, range(conv.inputs)):
                place = row * conv.stride + y * conv.dilation, column * conv.stride + x * conv.dilation
                a.append(padded[(sample, first + c, *place)])
                b.append(w[channel, c, y, x])
            sums.setdefault(channel, []).append((a, b))

    def bounds(channel):
        first = channel // conv.outputs * conv.inputs
        seen = [value[:, first + c].ravel().tolist() for c in range(conv.inputs)]
        if any(conv.pads):
            seen = [[*bytes_, conv.zero_point] for bytes_ in seen]
        return [(min(bytes_), max(bytes_)) for bytes_ in seen] * len(places)

    check(model, value, conv.zero_point, sums, bounds)


@settings(max_examples=40)
@given(
    st.sampled_from(["MatMul", "Gemm", "Gemm transB"]),
    st.tuples(st.integers(1, 9), st.integers(1, 3), st.sampled_from([0, 7, 255])),
    weights,
    activations,
    seeds,
)
def test_products_match_the_scalar_simulation(op, sizes, weight, activation, seed):
    features, outputs, zero_point = sizes
    w = draw(weight, WEIGHTS, seed, (features, outputs), np.int8)
    value = draw(activation, BYTES, seed + 1, (3, features), np.uint8)
    if op == "Gemm transB":
        model = qdq_model("Gemm", np.ascontiguousarray(w.T), zero_point, ["N", features], transB=1)
    else:
        model = qdq_model(op, w, zero_point, ["N", features])
    sums = {channel: [(row, w[:, channel]) for row in value] for channel in range(outputs)}
    ends = list(zip(value.min(axis=0).tolist(), value.max(axis=0).tolist(), strict=True))
    check(model, value, zero_point, sums, lambda _channel: ends)


def test_without_samples_any_byte_is_assumed():
    small = np.full((4, 2), 64, np.int8)  # 255 x 128 fits
    assert observe_saturation(qdq_model("MatMul", small, 0, ["N", 4]), None) == ()
    large = small.copy()
    large[0, 1] = 65
    (found,) = observe_saturation(qdq_model("MatMul", large, 0, ["N", 4]), None)
    assert (found.channels, found.observed_share, found.drift_sqnr_db) == (1, None, None)


def test_weights_of_different_pairs_do_not_add_up():
    """The two largest weights of the column are in different pairs."""
    apart = np.array([[127], [0], [127], [0]], np.int8)
    assert observe_saturation(qdq_model("MatMul", apart, 0, ["N", 4]), None) == ()


def test_depthwise_kernels_add_in_32_bits():
    weight = np.full((4, 1, 3, 3), 127, np.int8)
    assert int8_layers(qdq_model("Conv", weight, 0, ["N", 4, 5, 5], group=4)) == ()
    doubled = qdq_model("Conv", weight, 0, ["N", 2, 5, 5], group=2)  # two outputs for each input
    assert [f.shape for f in int8_layers(doubled)[0].filters] == [(9, 2), (9, 2)]


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER", "VALID"])
def test_automatic_padding(auto_pad):
    model = qdq_model(
        "Conv", np.ones((2, 2, 2, 3), np.int8), 9, ["N", 2, 4, 5], auto_pad=auto_pad, strides=[1, 2]
    )
    value = np.arange(40, dtype=np.uint8).reshape(1, 2, 4, 5)
    (rows,) = int8_layers(model)[0].rows(value, 100)
    (wanted,) = session_with_outputs(model, []).run(["y"], {"x": value.astype(np.float32) - 9})
    found = (rows.astype(int) - 9).sum(axis=1) * 0.5
    assert found.tolist() == wanted[0, 0].ravel().tolist()


def test_selected_rows_are_evenly_spaced(monkeypatch):
    model = qdq_model("Conv", np.full((2, 3, 3, 3), 127, np.int8), 0, ["N", 3, 8, 8])
    value = draw("random", BYTES, 3, (2, 3, 8, 8), np.uint8)
    layer = int8_layers(model)[0]
    (every,), (some,) = layer.rows(value, 1000), layer.rows(value, 9)
    assert (len(every), some.tolist()) == (72, every[::8].tolist())
    monkeypatch.setattr(observe_module, "ROWS", 9)
    first, second = (observe_saturation(model, [{"x": value.astype(np.float32)}]) for _ in range(2))
    assert first[0].observed_share == second[0].observed_share == 1.0


def test_batches_add_up():
    model = qdq_model("MatMul", np.full((4, 2), 127, np.int8), 0, ["N", 4])
    value = draw("random", BYTES, 5, (12, 4), np.uint8).astype(np.float32)
    (whole,) = observe_saturation(model, [{"x": value}])
    (parts,) = observe_saturation(model, [{"x": value[:5]}, {"x": value[5:]}])
    assert (whole.channels, whole.observed_share) == (parts.channels, parts.observed_share)
    assert whole.drift_sqnr_db == pytest.approx(parts.drift_sqnr_db)


def float_model(weights):
    """A chain of MatMul nodes, one for each weight."""
    nodes = [
        helper.make_node("MatMul", ["x" if not i else f"t{i}", f"w{i}"], [f"t{i + 1}"], name=f"layer{i}")
        for i in range(len(weights))
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", len(weights[0])])],
        [helper.make_tensor_value_info(f"t{len(weights)}", TensorProto.FLOAT, ["N", weights[-1].shape[1]])],
        [numpy_helper.from_array(w.astype(np.float32), f"w{i}") for i, w in enumerate(weights)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def test_dynamic_models_are_bounded(tmp_path):
    onnx.save(float_model([np.ones((4, 4))]), tmp_path / "float.onnx")
    quantize_dynamic(tmp_path / "float.onnx", tmp_path / "int8.onnx", weight_type=QuantType.QInt8)
    (found,) = observe_saturation(onnx.load(tmp_path / "int8.onnx"), [{"x": np.ones((2, 4), np.float32)}])
    assert (found.channels, found.observed_share) == (4, None)


@pytest.mark.parametrize("target", ["x86-avx2", "portable", "x86-vnni"])
def test_only_channels_that_saturate_are_reduced(tmp_path, target):
    identity = np.eye(4)  # one large weight in each column: no pair overflows
    mixed = np.where(np.arange(4) < 2, np.ones((4, 4)), identity * 5)  # two columns of ones
    model = float_model([identity, mixed, identity * 3])
    data = np.random.default_rng(0).random((16, 4)).astype(np.float32)
    path = tmp_path / "int8.onnx"
    made = quantize_model(
        model,
        path,
        ArraySamples({"x": data}),
        Int8Settings(TARGETS[target]),
        progress=SILENT,
    )
    saturates = TARGETS[target].saturates
    assert made.reduced_channels == ({"layer1": 2} if saturates else {})
    quantized = onnx.load(path)
    largest = {
        i.name: np.abs(numpy_helper.to_array(i).astype(int)).max(axis=0).tolist()
        for i in quantized.graph.initializer
        if i.name.endswith("_quantized")
    }
    assert largest == {
        "w0_quantized": [127] * 4,
        "w1_quantized": [64, 64, 127, 127] if saturates else [127] * 4,
        "w2_quantized": [127] * 4,
    }
    assert bool(observe_saturation(quantized, [{"x": data}])) is not saturates


@given(seed=seeds, rows=st.integers(2, 9))
@settings(max_examples=30, deadline=None)
def test_channels_keep_as_many_levels_as_they_can(tmp_path_factory, seed, rows):
    """The worst pair determines the levels. The only reserve is for rounding, as all bytes occur here."""
    rng = np.random.default_rng(seed)
    weight = rng.choice([-1, 1], (rows, 16)) * rng.uniform(0.2, 1, (rows, 16))
    data = np.concatenate([np.zeros((1, rows)), np.ones((1, rows)), rng.random((6, rows))])
    path = tmp_path_factory.mktemp("reduced") / "int8.onnx"
    made = quantize_model(
        float_model([weight]),
        path,
        ArraySamples({"x": data.astype(np.float32)}),
        Int8Settings(TARGETS["x86-avx2"]),
        progress=SILENT,
    )
    quantized = onnx.load(path)
    assert observe_saturation(quantized, [{"x": data.astype(np.float32)}]) == ()
    (integers,) = (
        numpy_helper.to_array(i).astype(int)
        for i in quantized.graph.initializer
        if i.name.endswith("_quantized")
    )
    levels = np.abs(integers).max(axis=0)
    assert made.reduced_channels.get("layer0", 0) == (levels < 127).sum()
    assert levels.min() >= 64
    for column, most in zip(weight.T, levels, strict=True):
        if most in range(65, 123):
            finer = np.rint(column / np.abs(column).max() * (most + 4)).astype(np.int8)[:, None]
            lowest, highest = pair_sums(finer, np.zeros(rows, int), np.full(rows, 255))
            assert lowest.min() < LEAST or highest.max() > MOST


def deep_model(layers=4, width=12):
    """Layers whose activations shift with the levels of the weights before them."""
    rng = np.random.default_rng(3)
    return float_model([rng.uniform(-0.2, 1, (width, width)) / width for _ in range(layers)])


def rare_data(rows=64, width=12):
    """Samples of which only the last one has large values."""
    data = np.random.default_rng(4).random((rows, width)).astype(np.float32) * 0.1
    data[-1] = 1.0
    return ArraySamples({"x": data})


def quantized(path, samples, **options):
    settings = Int8Settings(TARGETS["x86-avx2"], fixed_batch=4)
    made = quantize_model(deep_model(), path, samples, settings, progress=SILENT, **options)
    return made, onnx.load(path)


@pytest.mark.parametrize("first", [1, 100])
def test_all_samples_are_checked_whatever_the_first_round_sees(tmp_path, monkeypatch, first):
    # private: the result must not depend on it
    monkeypatch.setattr(reduce_module, "_FIRST_BATCHES", first)
    samples = rare_data()
    made, model = quantized(tmp_path / "int8.onnx", samples)
    assert made.reduced_channels
    assert observe_saturation(model, samples.batches(4)) == ()


def test_a_second_search_starts_from_the_levels_of_the_first(tmp_path, monkeypatch):
    samples, levels, rounds = rare_data(), {}, []
    made, model = quantized(tmp_path / "a.onnx", samples, found_levels=levels)
    assert levels
    observe = reduce_module.observe_saturation
    monkeypatch.setattr(
        reduce_module, "observe_saturation", lambda *a, **k: rounds.append(1) or observe(*a, **k)
    )
    again, other = quantized(tmp_path / "b.onnx", samples, found_levels=levels)
    assert len(rounds) == 1
    assert again.reduced_channels == made.reduced_channels
    assert other.graph.SerializeToString(deterministic=True) == model.graph.SerializeToString(
        deterministic=True
    )
