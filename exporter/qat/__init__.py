"""Quantization-aware training: the int8 graph in PyTorch, learning on the network's own parameters."""

from __future__ import annotations

from exporter.qat.sources import WeightSource, filled, find_sources, randomized
from exporter.qat.student import Student

__all__ = ["Student", "WeightSource", "filled", "find_sources", "randomized"]
