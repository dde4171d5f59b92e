"""Tensors are observed in bounded memory, with batches of the size that a real sample asks for."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bench.core.errors import DataError
from bench.core.progress import SILENT
from exporter.graphs import observed
from exporter.graphs.observed import Observed, extremes_model, samples_per_run
from exporter.options import CalibrationMethod
from exporter.quantization.calibration.collect import collect_ranges
from exporter.sources.splits import ArraySamples


def _network(axes, kernel=(1, 1)):
    """Two convolutions on an image [axes], with a tensor of each kind of size."""
    weight = np.random.default_rng(0).standard_normal((4, 2, *kernel)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["conv"], name="conv"),
        helper.make_node("Relu", ["conv"], ["relu"], name="relu"),
        helper.make_node("GlobalAveragePool", ["relu"], ["y"], name="pool"),
    ]
    return _model(nodes, axes, [numpy_helper.from_array(weight, "w")], len(axes))


def _model(nodes, axes, constants=(), rank=2):
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, axes)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * rank)],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@pytest.mark.parametrize(
    "axes", [["n", 2, "h", "w"], [None, 2, None, None], ["n", 2, 256, "w"], ["n", 2, 256, 256]]
)
def test_batches_depend_on_real_samples_and_not_on_stated_axes(axes):
    samples = ArraySamples({"x": np.zeros((3, 2, 256, 256), np.float32)})
    # conv and relu: 1 MiB each; the input: 0.5 MiB
    assert samples_per_run(_network(axes), ["x", "conv", "relu"], samples) == 32 * 2 // 5


def test_a_sample_larger_than_the_limit_runs_alone(monkeypatch):
    monkeypatch.setattr(observed, "BATCH_BYTES", 100)
    samples = ArraySamples({"x": np.zeros((3, 2, 8, 8), np.float32)})
    assert samples_per_run(_network(["n", 2, "h", "w"]), ["conv"], samples) == 1


def test_small_samples_run_in_the_largest_batches():
    samples = ArraySamples({"x": np.zeros((3, 2, 8, 8), np.float32)})
    assert samples_per_run(_network(["n", 2, "h", "w"]), ["conv"], samples) == observed.MAX_BATCH


def test_lengths_that_depend_on_values_are_measured():
    nodes = [
        helper.make_node("NonZero", ["x"], ["where"]),
        helper.make_node("Cast", ["where"], ["cast"], to=TensorProto.FLOAT),
        helper.make_node("Identity", ["cast"], ["y"]),
    ]
    found = Observed(_model(nodes, ["n", 10]), ["cast"]).sizes({"x": np.eye(1, 10, dtype=np.float32)})
    assert found == {"cast": 4 * 2}


def test_a_sample_that_the_model_rejects_is_bad_data():
    samples = ArraySamples({"x": np.zeros((1, 3, 8, 8), np.float32)})
    with pytest.raises(DataError, match="the model fails on a sample"):
        samples_per_run(_network(["n", "c", "h", "w"]), ["conv"], samples)


def test_parts_have_the_values_of_one_run(monkeypatch):
    feeds = {"x": np.random.default_rng(1).standard_normal((2, 2, 8, 8)).astype(np.float32)}
    tensors = ["x", "conv", "relu", "y"]
    network = _network(["n", 2, "h", "w"])
    (given, whole) = Observed(network, tensors).parts(feeds)
    monkeypatch.setattr(observed, "HELD_BYTES", 1)
    parts = list(Observed(network, tensors).parts(feeds))
    assert [list(part) for part in parts] == [["x"], ["conv"], ["relu"], ["y"]]
    for part in parts:
        for name, value in part.items():
            np.testing.assert_array_equal(value, {**given, **whole}[name])


def test_names_of_the_model_are_kept_free():
    nodes = [
        helper.make_node("Relu", ["x"], ["observed_0"]),
        helper.make_node("Identity", ["observed_0"], ["y"]),
    ]
    feeds = {"x": np.float32([[-1, 2]])}
    (part,) = Observed(_model(nodes, ["n", 2]), ["observed_0"]).parts(feeds)
    np.testing.assert_array_equal(part["observed_0"], [[0, 2]])


@pytest.mark.parametrize("method", ["minmax", "moving_average", "percentile", "entropy", "mse"])
def test_ranges_do_not_depend_on_the_limit(method: CalibrationMethod, monkeypatch):
    network, tensors = _network(["n", 2, "h", "w"]), ["x", "conv", "relu", "y"]
    values = np.random.default_rng(2).standard_normal((6, 2, 9, 7)).astype(np.float32)

    def ranges():
        feeds = ArraySamples({"x": values}).batches(2)
        return collect_ranges(network, tensors, feeds, batches=3, method=method, progress=SILENT)

    wanted = ranges()
    monkeypatch.setattr(observed, "HELD_BYTES", 1)
    assert ranges() == wanted


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("position", [0, 5, 63, 127])
def test_extremes_in_the_graph_show_values_that_are_not_finite(bad, position):
    model, outputs = extremes_model(_network(["n", 2, "h", "w"]), ["conv"])
    x = np.ones((1, 2, 8, 8), np.float32)
    x.reshape(-1)[position] = bad
    (found,) = Observed(model, outputs).fetch(outputs, {"x": x}).values()
    assert not np.isfinite([found.min(), found.max()]).all()


def test_nan_is_named_when_the_graph_computes_the_extremes(monkeypatch):
    monkeypatch.setattr(observed, "HELD_BYTES", 1)
    nodes = [
        helper.make_node("Sqrt", ["x"], ["root"], name="root"),
        helper.make_node("Relu", ["root"], ["y"]),
    ]
    model = _model(nodes, ["n", 2])
    with pytest.raises(DataError, match="tensor root: holds NaN"):
        collect_ranges(
            model, ["root"], [{"x": np.float32([[1, -1]])}], batches=1, method="minmax", progress=SILENT
        )


def test_without_observed_inputs_each_batch_counts_once(monkeypatch):
    monkeypatch.setattr(observed, "HELD_BYTES", 1)
    feeds = ArraySamples({"x": np.random.default_rng(0).random((4, 2, 8, 8)).astype(np.float32)}).batches(2)
    found = collect_ranges(
        _network(["n", 2, "h", "w"]), ["relu", "y"], feeds, batches=2, method="minmax", progress=SILENT
    )
    assert set(found) == {"relu", "y"}


def test_models_are_not_changed():
    network = _network(["n", 2, "h", "w"])
    before = onnx.ModelProto.FromString(network.SerializeToString())
    Observed(network, ["conv"])
    extremes_model(network, ["conv"])
    assert network == before
