"""Saturation of 16-bit sums on x86 without VNNI: find the layers at risk, measure it and avoid it."""

from __future__ import annotations

from exporter.inspection.saturation.dot import pair_sums, saturation_excess, vpmaddubsw_dot
from exporter.inspection.saturation.layers import Int8Layer, int8_layers
from exporter.inspection.saturation.observe import LayerSaturation, observe_saturation
from exporter.inspection.saturation.reduce import (
    NO_OVERRIDES,
    NO_REDUCTION,
    Overrides,
    Reduction,
    known_reduction,
    without_saturation,
)

__all__ = [
    "NO_OVERRIDES",
    "NO_REDUCTION",
    "Int8Layer",
    "LayerSaturation",
    "Overrides",
    "Reduction",
    "int8_layers",
    "known_reduction",
    "observe_saturation",
    "pair_sums",
    "saturation_excess",
    "vpmaddubsw_dot",
    "without_saturation",
]
