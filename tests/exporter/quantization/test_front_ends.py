"""Spectral front ends stay in float, and nothing else is taken for one."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from bench.core.progress import SILENT
from bench.metrics.parity import sqnr_db
from exporter.graphs.float_reasons import METADATA_KEY
from exporter.graphs.inference import open_exact
from exporter.graphs.targets import TARGETS
from exporter.quantization.front_ends import FRONT_END, front_end_nodes
from exporter.quantization.int8 import Int8Settings, quantize_model
from exporter.sources.splits import ArraySamples

WINDOW, HOP, BINS, MELS, LENGTH = 64, 32, 33, 12, 1024
RNG = np.random.default_rng(0)


def basis():
    """The real and imaginary parts of a windowed DFT, [2 * BINS, WINDOW]."""
    angle = 2 * np.pi * np.arange(BINS)[:, None] * np.arange(WINDOW)[None] / WINDOW
    return np.concatenate([np.cos(angle), np.sin(angle)]) * np.hanning(WINDOW)


def filters():
    """Triangular filters, [MELS, BINS]."""
    centers = np.linspace(2, BINS - 3, MELS)
    return np.maximum(0, 1 - abs(np.arange(BINS)[None] - centers[:, None]) / 3)


def cosines(count):
    rows = np.arange(count)[:, None] * (2 * np.arange(MELS)[None] + 1)
    return np.cos(np.pi * rows / (2 * MELS))


def waveforms(count):
    """Tones from loud to quiet over faint noise, with a different length each; [count, LENGTH]."""
    time = np.arange(LENGTH)
    loud = 10 ** RNG.uniform(-2, 0, (count, 1)) * np.sin(time[None] * RNG.uniform(0.2, 2.5, (count, 1)))
    envelope = np.exp(-(((time[None] - RNG.uniform(300, 700, (count, 1))) / 150) ** 2))
    return np.float32(loud * envelope + 1e-3 * RNG.standard_normal((count, LENGTH)))


CONSTANTS = {
    "dft": basis()[:, None],
    "dft_matrix": basis().T,
    "window": np.hanning(WINDOW),
    "mel": filters(),
    "mel_right": filters().T,
    "mel_conv": filters()[:, :, None],
    "smooth": np.full((MELS, 1, 5), 0.2),
    "dct": cosines(10),
    "eps": 1e-6,
    "one_f": 1.0,
    "two_f": 2.0,
    "loud": 100.0,
    "root": 0.3,
    "minus": -1.0,
    "alpha": -0.98,
    "db": 4.3429,
    "shift": -4.0,
    "w": RNG.standard_normal((16, MELS, 3)) * 0.2,
    "w10": RNG.standard_normal((16, 10, 3)) * 0.1,
    "v": RNG.standard_normal((16, 16, 3)) * 0.15,
    "h": RNG.standard_normal((16, 10)) * 0.4,
    "bands": RNG.standard_normal((MELS, 1, 31)) * 0.2,
    "trained": RNG.standard_normal((2 * BINS, 1, WINDOW)),
}
INTEGERS = {
    "ax1": [1],
    "ax3": [3],
    "halves": [BINS, BINS],
    "hop": HOP,
    "frame": WINDOW,
    "at0": 0,
    "at1": 1,
    "at2": 2,
    "windows": np.arange(0, LENGTH - WINDOW + 1, HOP)[:, None] + np.arange(WINDOW)[None],
}

CONV = f"u = Unsqueeze(x, ax1)  s = Conv<strides = [{HOP}]>(u, dft)  re, im = Split<axis = 1>(s, halves)"
GATHERED = (
    "f = Gather<axis = 1>(x, windows)  t = MatMul(f, dft_matrix)  s = Transpose<perm = [0, 2, 1]>(t)"
    "  re, im = Split<axis = 1>(s, halves)"
)
STFT = (
    "c = STFT<onesided = 1>(x, hop, window, frame)  rt = Gather<axis = 3>(c, at0)"
    "  it = Gather<axis = 3>(c, at1)  re = Transpose<perm = [0, 2, 1]>(rt)"
    "  im = Transpose<perm = [0, 2, 1]>(it)"
)
POWER = "r2 = Mul(re, re)  i2 = Pow(im, two_f)  p = Add(r2, i2)"
MAGNITUDE = "r2 = Mul(re, re)  i2 = Mul(im, im)  q2 = Add(r2, i2)  p = Sqrt(q2)"
LENGTHS = (
    "ur = Unsqueeze(re, ax1)  ui = Unsqueeze(im, ax1)  b = Concat<axis = 1>(ur, ui)"
    "  p = ReduceL2<keepdims = 0>(b, ax1)"
)
DFT = (
    "f = Gather<axis = 1>(x, windows)  fw = Mul(f, window)  f4 = Unsqueeze(fw, ax3)"
    "  c = DFT<onesided = 1>(f4, , at2)  pt0 = ReduceSumSquare<keepdims = 0>(c, ax3)"
    "  p = Transpose<perm = [0, 2, 1]>(pt0)"
)
MEL = "m = MatMul(mel, p)"
MEL_RIGHT = (
    "pt = Transpose<perm = [0, 2, 1]>(p)  mt = MatMul(pt, mel_right)  m = Transpose<perm = [0, 2, 1]>(mt)"
)
MEL_CONV = "m = Conv(p, mel_conv)"
LOG = "me = Add(m, eps)  l = Log(me)  n = Sub(l, shift)"
DECIBELS = "me = Max(m, eps)  l = Log(me)  n0 = Mul(l, db)  n1 = Sub(n0, shift)  n = Div(n1, loud)"
LOG1P = "ms = Mul(m, loud)  me = Add(ms, one_f)  n = Log(me)"
ROOT = "me = Add(m, eps)  n = Pow(me, root)"
PCEN = (
    f"sm = Conv<group = {MELS}, pads = [2, 2]>(m, smooth)  me = Add(sm, eps)  g = Pow(me, alpha)"
    "  a = Mul(m, g)  ao = Add(a, two_f)  n = Sqrt(ao)"
)
NETWORK = (
    "c1 = Conv<pads = [1, 1]>(n, w)  a1 = Relu(c1)  c2 = Conv<pads = [1, 1]>(a1, v)  a2 = Relu(c2)"
    "  gp = GlobalAveragePool(a2)  flat = Flatten(gp)  y = MatMul(flat, h)"
)
CHOSEN = "low = Greater(m, eps)  me = Where(low, m, eps)  l = Log(me)  n = Sub(l, shift)"
LEARNED = (
    "u = Unsqueeze(x, ax1)  s = Conv<strides = [2]>(u, bands)  a0 = Abs(s)"
    "  m = MaxPool<kernel_shape = [16], strides = [16]>(a0)"
)
MFCC = "me = Add(m, eps)  l = Log(me)  n = MatMul(dct, l)"
NETWORK_MFCC = NETWORK.replace("Conv<pads = [1, 1]>(n, w)", "Conv<pads = [1, 1]>(n, w10)")
LOUDNESS = "ab = Abs(x)  peak = ReduceMax<keepdims = 1>(ab, ax1)  x1 = Div(x, peak)"


def model(*parts, inputs=f"float[N, {LENGTH}] x", outputs="float[N, C] y"):
    found = onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["" : 20]> g ({inputs}) => ({outputs}) {{ {" ".join(parts)} }}'
    )
    read = {name for node in found.graph.node for name in node.input}
    for table, kind in ((CONSTANTS, np.float32), (INTEGERS, np.int64)):
        found.graph.initializer.extend(
            numpy_helper.from_array(np.asarray(value, kind), name)
            for name, value in table.items()
            if name in read
        )
    for node in found.graph.node:
        node.name = node.output[0]
    return found


KINDS = {
    "conv": (CONV, POWER, MEL, LOG, NETWORK),
    "conv mel right": (CONV, POWER, MEL_RIGHT, LOG, NETWORK),
    "conv mel conv": (CONV, POWER, MEL_CONV, LOG, NETWORK),
    "gathered windows": (GATHERED, POWER, MEL, LOG, NETWORK),
    "stft": (STFT, POWER, MEL, LOG, NETWORK),
    "dft": (DFT, MEL, LOG, NETWORK),
    "magnitude": (CONV, MAGNITUDE, MEL, LOG, NETWORK),
    "lengths": (CONV, LENGTHS, MEL, LOG, NETWORK),
    "decibels": (CONV, POWER, MEL, DECIBELS, NETWORK),
    "log1p": (CONV, POWER, MEL, LOG1P, NETWORK),
    "root": (CONV, POWER, MEL, ROOT, NETWORK),
    "pcen": (CONV, POWER, MEL, PCEN, NETWORK),
    "mfcc": (CONV, POWER, MEL, MFCC, NETWORK_MFCC),
    "where": (CONV, POWER, MEL, CHOSEN, NETWORK),
    "learned filters": (LEARNED, LOG, NETWORK),
    "loudness": (LOUDNESS, CONV.replace("(x,", "(x1,"), POWER, MEL, LOG, NETWORK),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_front_end_and_nothing_else_is_found(kind):
    found = front_end_nodes(model(*KINDS[kind]))
    products = {n.name for n in model(*KINDS[kind]).graph.node if n.op_type in {"Conv", "MatMul", "STFT"}}
    assert found & products == products - {"c1", "c2", "y"}
    assert not found & {"c1", "a1", "c2", "a2", "gp", "flat", "y"}


@pytest.mark.parametrize("kind", KINDS)
def test_the_int8_model_agrees_with_float(kind, tmp_path):
    network, path = model(*KINDS[kind]), tmp_path / "int8.onnx"
    samples = ArraySamples({"x": waveforms(32)})
    quantize_model(network, path, samples, Int8Settings(TARGETS["x86-vnni"]), progress=SILENT)
    feeds = {"x": waveforms(32)}
    float_scores, scores = (open_exact(m).run(None, feeds)[0] for m in (network, onnx.load(path)))
    assert sqnr_db(float_scores, scores) >= 20.0


def test_the_file_states_the_reason(tmp_path):
    path = tmp_path / "int8.onnx"
    samples = ArraySamples({"x": waveforms(8)})
    quantize_model(model(*KINDS["conv"]), path, samples, Int8Settings(TARGETS["x86-vnni"]), progress=SILENT)
    entries = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert json.loads(entries[METADATA_KEY])["s"] == FRONT_END


CONVOLUTION = "u = Unsqueeze(x, ax1)  s = Conv<strides = [32]>(u, trained)"
OTHERS = {
    "squares without a logarithm": "q = Mul(s, s)  y = Sqrt(q)",
    "layer norm": (
        "mean = ReduceMean<keepdims = 1>(s, ax1)  d = Sub(s, mean)  q = Pow(d, two_f)"
        "  var = ReduceMean<keepdims = 1>(q, ax1)  ve = Add(var, eps)  sd = Sqrt(ve)  y = Div(d, sd)"
    ),
    "softplus": "r = Relu(s)  e = Exp(r)  e1 = Add(e, one_f)  y = Log(e1)",
    "log of softmax": "e = Softmax<axis = 1>(s)  y = Log(e)",
    "cube": "q = Mul(s, s)  y = Mul(q, s)",
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_networks_have_no_front_end(kind):
    assert front_end_nodes(model(CONVOLUTION, OTHERS[kind], outputs="float[N, C, L] y")) == frozenset()


def test_a_product_that_a_logarithm_reads_inside_a_network_stays_in_float():
    body = "r = Relu(s)  t = Conv(r, k)  a = Relu(t)  b = Add(a, eps)  y = Log(b)"
    network = model(CONVOLUTION, body, outputs="float[N, C, L] y")
    weights = RNG.standard_normal((4, 2 * BINS, 1)).astype(np.float32)
    network.graph.initializer.append(numpy_helper.from_array(weights, "k"))
    assert front_end_nodes(network) == {"t", "a", "b"}


def test_a_residual_sum_before_a_logarithm_keeps_nothing_in_float():
    body = "a = Relu(s)  t = Conv(a, k)  b = Add(a, t)  r = Relu(b)  e = Add(r, eps)  y = Log(e)"
    network = model(CONVOLUTION, body, outputs="float[N, C, L] y")
    weights = RNG.standard_normal((2 * BINS, 2 * BINS, 1)).astype(np.float32)
    network.graph.initializer.append(numpy_helper.from_array(weights, "k"))
    assert front_end_nodes(network) == frozenset()


def test_trained_filters_after_the_logarithm_are_not_taken_for_a_basis():
    network = model(*KINDS["mfcc"])
    trained = numpy_helper.from_array(RNG.standard_normal((10, MELS)).astype(np.float32), "dct")
    next(t for t in network.graph.initializer if t.name == "dct").CopyFrom(trained)
    assert "n" not in front_end_nodes(network)
    assert "l" in front_end_nodes(network)


def fourier(count, length):
    """Cosines and sines of a transform, [count, length] each."""
    angle = 2 * np.pi * np.arange(count)[:, None] * np.arange(length)[None] / length
    return np.cos(angle), np.sin(angle)


COS, SIN = fourier(16, 32)
TRANSFORMS = {
    "halves of rows": (np.concatenate([COS, SIN]), True),
    "halves of columns": (np.concatenate([COS, SIN]).T, True),
    "pairs of rows": (np.stack([COS, -SIN], 1).reshape(32, 32), True),
    "with a window": (np.concatenate([COS, SIN]) * np.hanning(32), True),
    "trained": (RNG.standard_normal((32, 32)), False),
    "identity": (np.eye(32), False),
    "equal rows": (np.repeat(RNG.standard_normal((1, 32)), 32, axis=0), False),
    "signs": (np.where(RNG.standard_normal((32, 32)) > 0, 1.0, -1.0), False),
    "zeros": (np.zeros((32, 32)), False),
}


@pytest.mark.parametrize("place", ["first", "inside"])
@pytest.mark.parametrize("kind", TRANSFORMS)
def test_fourier_transforms_without_a_logarithm_stay_in_float(kind, place):
    weights, expected = TRANSFORMS[kind]
    before = "r = Identity(x)" if place == "first" else "h0 = MatMul(x, k0)  r = Relu(h0)"
    network = model(before, "y = MatMul(r, k)", inputs="float[N, 32] x")
    for name, content in (("k", weights), ("k0", RNG.standard_normal((32, 32)))):
        network.graph.initializer.append(numpy_helper.from_array(np.float32(content), name))
    assert front_end_nodes(network) == ({"y", *(["r"] if place == "first" else [])} if expected else set())


INSIDE = "c1 = Conv(x, k1)  r = Relu(c1)  t = Conv(r, k2)"
# Nodes between the product `t` and the product `e` that reads `z`, and the nodes that stay in float.
SENSITIVE = {
    "exponential": ("z = Exp(t)", {"e"}),
    "exponential that a limit follows": ("ex = Exp(t)  z = Clip(ex, eps, loud)", {"z", "e"}),
    "divisor": ("p = Abs(t)  q = Add(p, eps)  z = Div(r, q)", {"t", "p", "q"}),
    "reciprocal": ("p = Relu(t)  q = Add(p, eps)  z = Reciprocal(q)", {"t", "p", "q"}),
    "negative power": ("p = Abs(t)  z = Pow(p, minus)", {"t", "p"}),
    "sigmoid": ("n = Neg(t)  ex = Exp(n)  q = Add(ex, one_f)  z = Div(one_f, q)", set()),
    "elu": ("ex = Exp(t)  z = Sub(ex, one_f)", set()),
    "softmax": (
        "n = ReduceMax(t, ax1)  m = Sub(t, n)  ex = Exp(m)  s = ReduceSum(ex, ax1)  z = Div(ex, s)",
        set(),
    ),
    "softsign": ("p = Abs(t)  q = Add(p, one_f)  z = Div(t, q)", set()),
    "constant divisor": ("z = Div(t, two_f)", set()),
    "norm": ("p = Mul(t, t)  q = ReduceSum(p, ax1)  s = Sqrt(q)  z = Div(t, s)", set()),
    "RMS norm": (
        "p = Mul(t, t)  q = ReduceMean(p, ax1)  v = Add(q, eps)  s = Sqrt(v)  z = Div(t, s)",
        set(),
    ),
}


@pytest.mark.parametrize("kind", SENSITIVE)
def test_values_that_8_bits_cannot_hold_inside_a_network_stay_in_float(kind):
    body, expected = SENSITIVE[kind]
    network = model(
        INSIDE, body, "e = Conv(z, k3)  y = Relu(e)", inputs="float[N, 8, 9] x", outputs="float[N, 8, 9] y"
    )
    for name in ("k1", "k2", "k3"):
        weights = np.random.default_rng(0).standard_normal((8, 8, 1)).astype(np.float32)
        network.graph.initializer.append(numpy_helper.from_array(weights, name))
    assert front_end_nodes(network) == expected
