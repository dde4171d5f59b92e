"""Quantizing as a recipe asks for it: how many samples of the split are used, and for what."""

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


def test_more_samples_than_there_are(quantized, splits):
    with pytest.raises(DataError, match=r"25 samples are asked for, the calibration split has 24"):
        quantized(splits.calibration, samples=25)


def test_all_samples_are_used_unless_fewer_are_asked_for(quantized, splits):
    assert quantized(splits.calibration).samples == 24
    assert quantized(splits.calibration, samples=16).samples == 16


def test_repairs_are_judged_on_what_calibration_left(quantized, splits):
    many = np.arange(splits.evaluation.count)
    calibration = splits.evaluation.take(many)
    found = quantized(calibration, samples=40, repair=("adaround", "bias"))
    assert (found.samples, found.held_out_samples) == (40, 80)
    rest_is_too_little = Split(calibration.take(many[:44]).inputs, calibration.labels[:44])
    few = quantized(rest_is_too_little, samples=40, repair=("adaround", "bias"))
    assert (few.samples, few.held_out_samples) == (30, 10)


def test_bits_decide_what_is_made(quantized, splits):
    assert isinstance(quantized(splits.calibration), Int8Model)
    made = quantized(splits.calibration, bits=4, block_size=16)
    assert isinstance(made, Int4Model)
    assert (made.bits, made.block_size, made.products) == (4, 16, 1)
