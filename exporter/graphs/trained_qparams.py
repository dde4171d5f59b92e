"""Quantization parameters that weights were fitted to, by training or repairs; the quantizer uses them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from bench.core.arrays import Array
from exporter.graphs.ranges import Range


@dataclass(frozen=True)
class TrainedQparams:
    """Ranges and levels that weights were fitted to, by tensor names of the exported graph.

    Attributes:
        ranges: activation -> its range.
        levels: weight -> the integer to which the largest weight of each output channel is rounded, int [N]
            or one for all channels. Contains only weights with a channel below 127, to prevent saturation.
    """

    ranges: Mapping[str, Range] = field(default_factory=dict)
    levels: Mapping[str, Array] = field(default_factory=dict)


NO_TRAINED_QPARAMS = TrainedQparams()
