"""What weights were fitted to, by training or by repairs, and the quantizer then takes as it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from bench.core.arrays import Array
from exporter.graphs.ranges import Range


@dataclass(frozen=True)
class TrainedQparams:
    """Both by their names in the exported graph.

    Attributes:
        ranges: activation -> its range.
        levels: weight -> what the largest weight of each output channel becomes, int [N] or one
            for all; only for weights that have fewer than 127 in a channel, so that it does not saturate.
    """

    ranges: Mapping[str, Range] = field(default_factory=dict)
    levels: Mapping[str, Array] = field(default_factory=dict)


NO_TRAINED_QPARAMS = TrainedQparams()
