"""Profiles of real models: names, shares, and the operators that slow an int8 model down."""

from __future__ import annotations

import itertools

import numpy as np
import onnxruntime
import pytest

from bench.core.errors import ModelError
from exporter.inspection import operator_times as operator_times_module
from exporter.inspection.operator_times import OperatorTime, blamed, operator_times


@pytest.fixture(scope="module")
def image():
    return {"image": np.zeros((1, 1, 8, 8), np.float32)}


def test_every_operator_of_the_float_model_is_counted(onnx_models, image):
    times = operator_times(onnx_models.float, image)
    assert {"GlobalAveragePool", "Gemm"} <= {time.op_type for time in times}
    assert sum(time.share for time in times) == pytest.approx(1.0)
    assert [time.median_us for time in times] == sorted((t.median_us for t in times), reverse=True)
    assert len({time.name for time in times}) == len(times) > 3


def test_int8_kernels_and_conversions_are_recognized(onnx_models, image):
    times = operator_times(onnx_models.int8, image)
    kinds = {time.op_type: (time.is_int8, time.is_conversion) for time in times}
    assert (False, True) in kinds.values()
    assert (True, False) in kinds.values()
    assert not any(time.is_int8 for time in blamed(times))


def test_the_slowest_operators_are_blamed_first():
    times = [
        OperatorTime(name=name, op_type=kind, median_us=us, share=us / 10)
        for name, kind, us in (("a", "QLinearConv", 5), ("b", "HardSwish", 3), ("c", "QuantizeLinear", 2))
    ]
    assert [time.name for time in blamed(times)] == ["b", "c"]
    assert [time.name for time in blamed(times, 1)] == ["b"]


def test_feeds_that_do_not_fit_are_a_model_error(onnx_models):
    with pytest.raises(ModelError):
        operator_times(onnx_models.float, {"image": np.zeros((1, 2, 8, 8), np.float32)})


@pytest.mark.parametrize(("step", "runs"), [(0.0, 35), (1e3, 6)])
def test_a_slow_model_runs_less_often(onnx_models, image, monkeypatch, step, runs):
    now = itertools.count(step=step)
    monkeypatch.setattr(operator_times_module.time, "monotonic", now.__next__)
    counted = []

    class Counted(onnxruntime.InferenceSession):
        def run(self, names, feeds):
            counted.append(feeds)
            return super().run(names, feeds)

    monkeypatch.setattr(operator_times_module.onnxruntime, "InferenceSession", Counted)
    operator_times(onnx_models.float, image)
    assert len(counted) == runs


def test_no_profile_files_remain(onnx_models, image, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    operator_times(onnx_models.float, image)
    assert list(tmp_path.iterdir()) == []
