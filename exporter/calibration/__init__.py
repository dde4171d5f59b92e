"""Calibration: collecting activation ranges, in memory that does not grow with the number of samples."""

from __future__ import annotations

from exporter.calibration.collect import collect_ranges
from exporter.calibration.histogram import Histogram
from exporter.calibration.methods import Range, entropy_range, mse_range, percentile_range

__all__ = ["Histogram", "Range", "collect_ranges", "entropy_range", "mse_range", "percentile_range"]
