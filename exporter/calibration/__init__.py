"""Calibration: collecting activation ranges, in memory that does not grow with the number of samples."""

from __future__ import annotations

from exporter.calibration.collect import collect_ranges
from exporter.calibration.histogram import GrowingHistogram, Histogram
from exporter.calibration.methods import Range, entropy_range, mse_range, percentile_range
from exporter.calibration.store import RangeStore

__all__ = [
    "GrowingHistogram",
    "Histogram",
    "Range",
    "RangeStore",
    "collect_ranges",
    "entropy_range",
    "mse_range",
    "percentile_range",
]
