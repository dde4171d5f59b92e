"""Calibration: ranges from histograms, and the pass over the data that fills the histograms."""

from __future__ import annotations

import weakref

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx import helper, numpy_helper

from bench.core.errors import DataError
from bench.core.progress import SILENT
from exporter.graphs.ranges import Range
from exporter.graphs.targets import TARGETS
from exporter.quantization.calibration import (
    GrowingHistogram,
    Histogram,
    collect_ranges,
    entropy_range,
    mse_range,
    percentile_range,
)
from exporter.quantization.calibration.histogram import BINS
from exporter.quantization.calibration.methods import Divergences
from exporter.quantization.qdq import plan_qdq
from exporter.quantization.split import quantize_split
from exporter.recipes import QuantizeConfig
from exporter.sources.splits import Split

METHODS = ("minmax", "moving_average", "percentile", "entropy", "mse")
NORMAL = np.random.default_rng(0).standard_normal(200_000).astype(np.float32)


def histogram_of(values: np.ndarray, parts: int = 7) -> Histogram:
    growing = GrowingHistogram()
    for part in np.array_split(values, parts):
        if part.size:
            growing.add(part)
    return growing.histogram()


def quantization_error(values: np.ndarray, found: Range) -> float:
    """Mean squared error of rounding to 256 levels, computed by rounding the values."""
    distance = (found.highest - found.lowest) / 255
    level = np.clip(np.round((values - found.lowest) / distance), 0, 255)
    return float(np.mean((values - (found.lowest + level * distance)) ** 2))


@pytest.fixture
def network() -> onnx.ModelProto:
    """Conv, Relu, GlobalAveragePool, Flatten, Gemm on [N, 2, 6, 6]."""
    generator = np.random.default_rng(1)
    weights = {
        "conv.w": generator.standard_normal((4, 2, 3, 3)).astype(np.float32),
        "conv.b": generator.standard_normal(4).astype(np.float32),
        "fc.w": generator.standard_normal((3, 4)).astype(np.float32),
        "fc.b": generator.standard_normal(3).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "conv.w", "conv.b"], ["conv"], name="conv"),
        helper.make_node("Relu", ["conv"], ["relu"], name="relu"),
        helper.make_node("GlobalAveragePool", ["relu"], ["pool"], name="pool"),
        helper.make_node("Flatten", ["pool"], ["flat"], name="flat"),
        helper.make_node("Gemm", ["flat", "fc.w", "fc.b"], ["y"], name="fc", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 2, 6, 6])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return onnx.shape_inference.infer_shapes(model)


@pytest.fixture
def split() -> Split:
    images = np.random.default_rng(2).standard_normal((50, 2, 6, 6)).astype(np.float32)
    return Split({"x": images}, np.arange(50) % 3)


@given(
    arrays.arrays(
        np.float32,
        st.integers(1, 300),
        elements=st.floats(-1e4, 1e4, width=32, allow_subnormal=False),
    ),
    st.integers(1, 7),
)
@settings(derandomize=True, deadline=None, max_examples=100)
def test_a_histogram_counts_every_value_once_in_the_correct_bin(values, parts):
    histogram = histogram_of(values, parts)
    assert (histogram.lowest, histogram.highest) == (values.min(), values.max())
    farthest = float(np.abs(values).max())
    if farthest > BINS * 2.0**-126:
        assert farthest / histogram.width >= BINS
        assert farthest / histogram.width < 2 * BINS
    # Our bins are half open. numpy's last bin is closed, so numpy gets one additional bin.
    edges = np.append(histogram.edges(), histogram.edges()[-1] + histogram.width)
    expected, _ = np.histogram(values.astype(np.float64), bins=edges)
    np.testing.assert_array_equal(histogram.counts, expected[:-1])


def test_a_histogram_does_not_depend_on_the_order_or_the_size_of_batches():
    # A batch of 65,536 values or more is counted in several tables. The values are in ascending order.
    values = np.sort(np.abs(NORMAL)) * np.float32(1e3)
    whole = histogram_of(values, 1)
    for other in (histogram_of(values, 150), histogram_of(values[::-1].copy(), 3)):
        assert (other.first, other.width) == (whole.first, whole.width)
        np.testing.assert_array_equal(other.counts, whole.counts)


def test_a_histogram_grows_over_the_whole_range_of_float32():
    growing = GrowingHistogram()
    for values in ([0.0, -0.0], [1e-38, -1e-38], [1.0, -1.0], [3e38, -3e38]):
        growing.add(np.array(values, np.float32))
    histogram = growing.histogram()
    occupied = histogram.edges()[np.flatnonzero(histogram.counts)]
    np.testing.assert_array_equal(histogram.counts[histogram.counts > 0], [1, 2, 4, 1])
    np.testing.assert_array_equal(occupied[1:3], [-histogram.width, 0.0])
    assert -3e38 - histogram.width < occupied[0] <= -3e38


def test_a_histogram_accepts_values_that_hardly_differ():
    values = np.array([0.0, 1e-38, 2e-38], np.float32)
    assert histogram_of(values).counts.sum() == 3


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_histogram_needs_finite_values(bad):
    with pytest.raises(ValueError, match="NaN or infinity"):
        GrowingHistogram().add(np.array([0.0, bad], np.float32))


def test_an_empty_histogram_is_an_error():
    with pytest.raises(ValueError, match="no values"):
        GrowingHistogram().histogram()


@pytest.mark.parametrize("method", [entropy_range, mse_range, lambda h: percentile_range(h, 99.9)])
def test_every_range_holds_zero_and_lies_within_the_data(method):
    for values in (NORMAL, np.abs(NORMAL), NORMAL + 3, -np.abs(NORMAL) - 1):
        found = method(histogram_of(values))
        assert found.lowest <= 0.0 <= found.highest
        width = (values.max() - values.min()) / BINS
        assert found.lowest >= min(values.min(), 0.0) - width
        assert found.highest <= max(values.max(), 0.0) + width


@pytest.mark.parametrize("percentile", [90.0, 99.0, 99.9])
def test_percentile_clips_the_requested_fraction(percentile):
    found = percentile_range(histogram_of(NORMAL), percentile)
    outside = np.mean((found.lowest > NORMAL) | (found.highest < NORMAL)) * 100
    assert outside == pytest.approx(100 - percentile, abs=0.15 * (100 - percentile) + 0.02)


def test_mse_is_no_worse_than_any_range_on_a_grid():
    values = np.concatenate([NORMAL, np.array([60.0, -45.0], np.float32)])
    found = mse_range(histogram_of(values))
    best = quantization_error(values, found)
    for low in np.linspace(values.min(), -0.5, 12):
        for high in np.linspace(values.max(), 0.5, 12):
            assert best <= quantization_error(values, Range(low, high)) * 1.03
    assert found.highest < 50


def divergence(counts: np.ndarray, first: int, last: int) -> float:
    """KL(P || Q) if bins first ... last - 1 are kept, by the definition in `entropy_range`."""
    p = counts[first:last].copy()
    p[0] += counts[:first].sum()
    p[-1] += counts[last:].sum()
    q = np.zeros_like(p)
    level = np.arange(len(p)) * 256 // len(p)
    inside = counts[first:last]
    for number in range(256):
        members = (level == number) & (inside > 0)
        if members.any():
            q[members] = inside[level == number].sum() / members.sum()
    p, q = p / p.sum(), np.maximum(q / q.sum(), 1e-12)
    return float(np.sum(p[p > 0] * np.log(p[p > 0] / q[p > 0])))


@pytest.mark.parametrize("seed", range(6))
def test_the_fast_divergence_equals_its_definition(seed):
    generator = np.random.default_rng(seed)
    decay = np.exp(-np.arange(3000) / generator.uniform(100, 3000))
    counts = generator.poisson(decay * generator.choice([0.5, 30.0, 1e5])).astype(np.float64)
    fast = Divergences(counts)
    for _ in range(20):
        first = int(generator.integers(0, 1000))
        last = int(generator.integers(first + 256, 3001))
        if counts[first:last].any():
            assert fast.of(first, last) == pytest.approx(
                divergence(counts, first, last), rel=1e-9, abs=1e-11
            )


def test_entropy_drops_a_lone_outlier_and_keeps_a_flat_distribution():
    outlier = np.concatenate([NORMAL, np.array([100.0], np.float32)])
    assert entropy_range(histogram_of(outlier)).highest < 50
    flat = np.random.default_rng(3).uniform(0, 1, 200_000).astype(np.float32)
    assert entropy_range(histogram_of(flat)).highest > 0.9


def test_entropy_is_not_affected_by_the_peak_that_relu_creates_at_zero():
    sparse = np.where(np.random.default_rng(4).random(NORMAL.size) < 0.95, 0, np.abs(NORMAL))
    dense = np.abs(NORMAL)
    found, wanted = (entropy_range(histogram_of(v.astype(np.float32))).highest for v in (sparse, dense))
    assert found > 0.6 * wanted


def test_only_tensors_that_are_rounded_are_collected(network):
    plan = plan_qdq(network, TARGETS["x86-vnni"])
    # The convolution absorbs the Relu after it, so its own output is not rounded. The classifier's output
    # stays in float.
    assert plan.tensors == ("x", "relu", "pool", "flat")


def test_minmax_equals_the_extremes_over_all_batches(network, split):
    found = collect_ranges(
        network, ["x", "relu", "y"], split.batches(7), batches=8, method="minmax", progress=SILENT
    )
    images = split.inputs["x"]
    assert found["x"] == Range(float(images.min()), float(images.max()))
    assert found["relu"].lowest == 0.0
    assert found["relu"].highest > 1.0


def test_a_moving_average_follows_the_batches(network):
    ramp = np.stack([np.full((2, 6, 6), v, np.float32) for v in (1.0, 3.0)])
    split = Split({"x": ramp}, np.arange(2))
    found = collect_ranges(
        network, ["x"], split.batches(1), batches=2, method="moving_average", progress=SILENT
    )
    assert found["x"].highest == pytest.approx(1.0 + 0.05 * 2.0)


@pytest.mark.parametrize("method", METHODS)
def test_constant_tensors_have_a_range_in_every_method(network, method):
    dead = next(i for i in network.graph.initializer if i.name == "conv.b")
    dead.CopyFrom(numpy_helper.from_array(np.full(4, -1e4, np.float32), dead.name))
    x = np.random.default_rng(3).standard_normal((4, 2, 6, 6)).astype(np.float32)
    split = Split({"x": x}, np.arange(4) % 2)
    found = collect_ranges(network, ["relu"], split.batches(2), batches=2, method=method, progress=SILENT)
    assert found["relu"] == Range(0.0, 0.0)


def test_infinite_activations_are_named(network):
    split = Split({"x": np.full((2, 2, 6, 6), 3e38, np.float32)}, np.arange(2))
    with pytest.raises(DataError, match="tensor relu: holds NaN or infinity"):
        collect_ranges(
            network, ["x", "relu"], split.batches(2), batches=1, method="minmax", progress=SILENT
        )


def test_batches_are_freed_once_they_are_counted(network):
    made, most = [], 0

    def feeds():
        nonlocal most
        for k in range(12):
            batch = np.full((1, 2, 6, 6), k, np.float32)
            made.append(weakref.ref(batch))
            most = max(most, sum(reference() is not None for reference in made))
            yield {"x": batch}
            del batch

    found = collect_ranges(network, ["x", "y"], feeds(), batches=12, method="percentile", progress=SILENT)
    assert found["x"].highest > 10
    assert most <= 3  # one batch is being counted, one is being run and one is being created


def test_an_error_in_a_later_sample_is_reported(network):
    def feeds():
        yield {"x": np.zeros((1, 2, 6, 6), np.float32)}
        raise DataError("calibration.npz", "array 'x' is truncated", "write the file again")

    with pytest.raises(DataError, match="truncated"):
        collect_ranges(network, ["x"], feeds(), batches=2, method="entropy", progress=SILENT)


def test_no_samples_are_refused(network):
    with pytest.raises(DataError, match="no samples"):
        collect_ranges(network, ["x"], [], batches=0, method="minmax", progress=SILENT)


def test_minmax_builds_the_same_model_as_quantize_static(network, split, tmp_path):
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.batches = split.batches(16)

        def get_next(self):
            return next(self.batches, None)

    source, ours, theirs = (tmp_path / name for name in ("float.onnx", "ours.onnx", "theirs.onnx"))
    onnx.save(network, source)
    quantize_split(
        source, ours, split, QuantizeConfig(samples=50), TARGETS["x86-vnni"], seed=0, progress=SILENT
    )
    quantize_static(
        source,
        theirs,
        Reader(),
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        extra_options={"OpTypesToExcludeOutputQuantization": ["Gemm"]},  # our placement does the same
    )
    first, second = (
        {i.name: numpy_helper.to_array(i) for i in onnx.load(path).graph.initializer}
        for path in (ours, theirs)
    )
    assert first.keys() == second.keys()
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name], err_msg=name)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_builds_a_model_that_agrees_with_float(network, split, tmp_path, method):
    from bench.metrics.parity import parity
    from exporter.graphs.inference import run_model

    source, destination = tmp_path / "float.onnx", tmp_path / "int8.onnx"
    onnx.save(network, source)
    made = quantize_split(
        source,
        destination,
        split,
        QuantizeConfig(method=method),
        TARGETS["x86-vnni"],
        seed=0,
        progress=SILENT,
    )
    assert (made.method, made.samples) == (method, 50)
    found = parity(run_model(source, split), run_model(destination, split))
    assert found.sqnr_db > 20
    assert found.agreement >= 0.9
