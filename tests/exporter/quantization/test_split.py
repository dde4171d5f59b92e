"""Quantization according to a recipe: how many samples of the split calibrate and how many judge."""

from __future__ import annotations

import numpy as np
import pytest

from bench.core.errors import DataError
from bench.core.progress import SILENT
from exporter.graphs.targets import TARGETS
from exporter.quantization.split import quantize_split
from exporter.recipes import QuantizeConfig
from exporter.results import Int4Model, Int8Model
from exporter.sources.splits import Split


@pytest.fixture
def quantized(onnx_models, tmp_path):
    """Quantize the trained network with a calibration split."""

    def run(calibration, **config):
        path = tmp_path / "small.onnx"
        settings, target = QuantizeConfig(**config), TARGETS["x86-vnni"]
        return quantize_split(
            onnx_models.float, path, calibration, settings, target, seed=0, progress=SILENT
        )

    return run


def test_more_samples_than_the_split_has_are_rejected(quantized, splits):
    with pytest.raises(DataError, match=r"25 samples are requested, but the calibration split has 24"):
        quantized(splits.calibration, samples=25)


def test_all_samples_are_used_unless_fewer_are_requested(quantized, splits):
    assert quantized(splits.calibration).samples == 24
    assert quantized(splits.calibration, samples=16).samples == 16


def test_repairs_are_judged_on_the_rest_of_the_calibration_split(quantized, splits):
    many = np.arange(splits.evaluation.count)
    calibration = splits.evaluation.take(many)
    found = quantized(calibration, samples=40, repair=("adaround", "bias"))
    assert (found.samples, found.held_out_samples) == (40, 80)
    rest_is_too_little = Split(calibration.take(many[:44]).inputs, calibration.labels[:44])
    few = quantized(rest_is_too_little, samples=40, repair=("adaround", "bias"))
    assert (few.samples, few.held_out_samples) == (30, 10)


def test_bits_select_the_kind_of_quantization(quantized, splits):
    assert isinstance(quantized(splits.calibration), Int8Model)
    made = quantized(splits.calibration, bits=4, block_size=16)
    assert isinstance(made, Int4Model)
    assert (made.bits, made.block_size, made.products) == (4, 16, 1)
