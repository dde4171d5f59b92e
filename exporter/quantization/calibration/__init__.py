"""Calibration: collect activation ranges in memory that does not grow with the number of samples."""

from __future__ import annotations

from exporter.quantization.calibration.collect import collect_ranges
from exporter.quantization.calibration.histogram import GrowingHistogram, Histogram
from exporter.quantization.calibration.methods import entropy_range, mse_range, percentile_range
from exporter.quantization.calibration.ranges import activation_ranges
from exporter.quantization.calibration.store import RangeStore

__all__ = [
    "GrowingHistogram",
    "Histogram",
    "RangeStore",
    "activation_ranges",
    "collect_ranges",
    "entropy_range",
    "mse_range",
    "percentile_range",
]
