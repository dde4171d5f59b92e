"""STFT becomes a Conv and DFT a MatMul if that is faster."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from exporter.graphs.rewrites import FourierPass
from exporter.quantization.front_ends import front_end_nodes
from tests.exporter.graphs.rewrites.graphs_by_hand import build, check_rewrite, outputs_of

RANDOM = np.random.default_rng(0)
LENGTH = 200
CONV = ["Reshape", "Conv", "Transpose", "Reshape"]
MATMUL = ["Squeeze", "MatMul", "Reshape"]


def stft(frame, *, onesided=1, window=True, stated=True, step=16, shape=("n", LENGTH), opset=17):
    inputs = ["x", "step", "window" if window else "", "frame" if stated else ""]
    attributes = {} if onesided is None else {"onesided": onesided}
    constants = {"step": np.array(step), "window": np.hanning(frame), "frame": np.array(frame)}
    return build([("STFT", inputs, "y", attributes)], constants, list(shape), opset=opset)


def signal(*shape):
    return RANDOM.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("onesided", [None, 0, 1])
@pytest.mark.parametrize(("window", "stated"), [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("frame", [25, 32])
def test_an_stft_becomes_a_conv(frame, window, stated, onesided):
    model = stft(frame, window=window, stated=stated, onesided=onesided)
    assert check_rewrite(model, (FourierPass(),), signal(2, LENGTH)) == CONV


@pytest.mark.parametrize("shape", [("n", LENGTH, 1), (3, LENGTH), ("n", "t"), ("n", "t", 1)])
@pytest.mark.parametrize("opset", [17, 20])
def test_the_signal_may_have_a_last_axis_and_open_axes(shape, opset):
    sample = signal(3, LENGTH, 1).reshape(3, LENGTH, *shape[2:])
    assert check_rewrite(stft(20, shape=shape, opset=opset), (FourierPass(),), sample) == CONV


@pytest.mark.parametrize("frame", [400, 512, 1000])
def test_the_result_is_the_transform_of_numpy(frame):
    model, x = stft(frame, shape=("n", 1500)), signal(1, 1500)
    FourierPass()(model)
    frames = np.lib.stride_tricks.sliding_window_view(x[0].astype(np.float64), frame)[::16]
    expected = np.fft.rfft(frames * np.hanning(frame))
    (found,) = outputs_of(model, x)
    assert np.abs(found[0] @ [1, 1j] - expected).max() < 2e-6 * np.abs(expected).max()


def test_a_complex_signal_is_left_alone():
    model = stft(32, onesided=0, shape=("n", LENGTH, 2))
    assert check_rewrite(model, (FourierPass(),), signal(2, LENGTH, 2)) == ["STFT"]


def test_long_frames_of_a_power_of_two_are_left_alone():
    sample = signal(1, 1500)
    assert check_rewrite(stft(1024, shape=("n", 1500)), (FourierPass(),), sample) == ["STFT"]
    assert check_rewrite(stft(512, shape=("n", 1500)), (FourierPass(),), sample) == CONV
    assert check_rewrite(stft(600, shape=("n", 1500)), (FourierPass(),), sample) == CONV


def test_a_computed_step_or_window_is_left_alone():
    steps = [("Abs", ["window"], "w", {}), ("STFT", ["x", "step", "w", "frame"], "y", {})]
    constants = {"step": np.array(16), "window": np.hanning(32), "frame": np.array(32)}
    model = build(steps, constants, ["n", LENGTH])
    assert check_rewrite(model, (FourierPass(),), signal(2, LENGTH)) == ["Abs", "STFT"]


def dft(shape, *, length=None, axis=-2, onesided=0, opset=20, inverse=0):
    """A DFT of a signal of a shape, whose last axis is 1 or 2."""
    inputs = ["x", "" if length is None else "length"] + (["axis"] if opset >= 20 else [])
    attributes = {"onesided": onesided, "inverse": inverse} | ({} if opset >= 20 else {"axis": axis})
    constants = {"length": np.array(length or 1), "axis": np.array(axis)}
    read = {name: value for name, value in constants.items() if name in inputs}
    return build([("DFT", inputs, "y", attributes)], read, list(shape), opset=opset)


@pytest.mark.parametrize("opset", [17, 20])
@pytest.mark.parametrize("onesided", [0, 1])
@pytest.mark.parametrize("shape", [("n", 30, 1), ("n", 5, 32, 1), ("n", 2, 3, 21, 1)])
@pytest.mark.parametrize("change", [None, 0, -5, 7])
def test_a_dft_becomes_a_matmul(shape, change, onesided, opset):
    length = None if change is None else shape[-2] + change
    model = dft(shape, length=length, axis=len(shape) - 2, onesided=onesided, opset=opset)
    assert check_rewrite(model, (FourierPass(),), signal(2, *shape[1:])) == MATMUL


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        (("n", 32, 2), {}),  # complex
        (("n", 6, 32, 1), {"axis": 1}),  # another axis
        (("n", 32, 2), {"inverse": 1}),
        (("n", 2048, 1), {"onesided": 1}),  # the fast transform is faster
    ],
)
def test_other_dfts_are_left_alone(shape, options):
    assert check_rewrite(dft(shape, **options), (FourierPass(),), signal(2, *shape[1:])) == ["DFT"]


def test_a_dft_of_unknown_length_is_left_alone():
    assert check_rewrite(dft(("n", "t", 1)), (FourierPass(),), signal(2, 32, 1)) == ["DFT"]


@pytest.mark.parametrize("model", [stft(32), dft(("n", 32, 1)), stft(25, window=False)])
def test_the_products_stay_in_float(model):
    FourierPass()(model)
    assert front_end_nodes(ir.to_proto(model)) >= {"n_y"}
