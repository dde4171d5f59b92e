"""Quantization-aware training: the int8 graph in PyTorch, which trains the network's own parameters."""

from __future__ import annotations

from exporter.training.qat.constant_graph import ConstantGraph
from exporter.training.qat.rearranged import rearranged_sources
from exporter.training.qat.sources import WeightSource, filled, find_sources, randomized
from exporter.training.qat.student import WITHOUT_QAT, Student

__all__ = [
    "WITHOUT_QAT",
    "ConstantGraph",
    "Student",
    "WeightSource",
    "filled",
    "find_sources",
    "randomized",
    "rearranged_sources",
]
