"""Find int8 layers that can saturate without VNNI, and measure on samples how often and how much."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx

from bench.core.arrays import Array
from bench.metrics.parity import decibels
from exporter.graphs.observed import Observed
from exporter.inspection.saturation.dot import LEAST, MOST, pair_sums, saturation_excess
from exporter.inspection.saturation.layers import Int8Layer, as_unsigned, int8_layers

# Rows of sums (one sum for each output channel) to simulate for each layer and batch.
ROWS = 1024


@dataclass(frozen=True)
class LayerSaturation:
    """The saturation of a layer's 16-bit sums.

    Attributes:
        layer: the layer.
        bounds: the smallest and largest byte of each input channel, or None if they were not observed.
        observed_share: the fraction of simulated sums that saturation changed; None if not observed.
        drift_sqnr_db: energy of the layer's exact sums divided by the energy of the saturation errors, in
            dB, before bias, activation and rounding. None if not observed.
    """

    layer: Int8Layer
    bounds: tuple[Array, Array] | None
    observed_share: float | None = None
    drift_sqnr_db: float | None = None

    def risky(self, slack: int = 0) -> Array:
        """Whether each output channel has a pair of products that can overflow.

        The pairs are the products that the kernel adds in 16 bits. Each activation can have any value
        between its channel's bounds, widened by `slack` levels. An activation that was not observed can
        have any byte value.

        Returns:
            Bool [N].
        """
        found = []
        for filters, lowest, highest in self._groups(slack):
            least, most = pair_sums(filters, lowest, highest)
            found.append(((least < LEAST) | (most > MOST)).any(axis=0))
        return np.concatenate(found)

    def safe_share(self, slack: int = 0) -> Array:
        """The factor by which to shrink each output channel's weights so that no pair can overflow.

        Activations are bounded as in `risky`. The factor leaves room for rounding the shrunk weights, which
        can increase each magnitude by a whole level.

        Returns:
            Float [N], at most 1.
        """
        found = []
        for filters, lowest, highest in self._groups(slack):
            outward = filters.astype(np.int32) + np.sign(filters)
            least, most = pair_sums(outward, lowest, highest)
            found.append(np.maximum(least / LEAST, most / MOST).max(axis=0))
        share: Array = 1 / np.maximum(np.concatenate(found), 1.0)
        return share

    def _groups(self, slack: int) -> Iterator[tuple[Array, Array, Array]]:
        """For each group, the weights [K, N] and the bounds [K] of the activations, widened by `slack`."""
        for group, filters in enumerate(self.layer.filters):
            if self.bounds is None:
                lowest, highest = np.zeros(len(filters), np.int32), np.full(len(filters), 255, np.int32)
            else:
                low, high = (self.layer.along_k(bound, group).astype(np.int32) for bound in self.bounds)
                lowest, highest = np.maximum(low - slack, 0), np.minimum(high + slack, 255)
            yield filters, lowest, highest

    @cached_property
    def channels(self) -> int:
        """The number of output channels that can overflow."""
        return int(self.risky().sum())


def observe_saturation(
    model: onnx.ModelProto, batches: Iterable[Mapping[str, Array]] | None, *, simulate: bool = True
) -> tuple[LayerSaturation, ...]:
    """Find the layers of a quantized model that can saturate. Other layers are not in the result.

    The graph runs without optimizations, in float between its roundings, so the observations do not depend
    on this CPU. Each batch is reduced before the next one runs. The bounds cover all activations.
    The fraction of changed sums and the SQNR are measured on the sums of up to `ROWS` evenly spaced
    positions (rows of a product) for each layer and batch.

    Args:
        model: a quantized model.
        batches: feeds; None to assume that any byte can occur.
        simulate: whether to also count the sums that saturate. Otherwise only the bounds are observed,
            which is faster.
    """
    unseen = [LayerSaturation(layer, None) for layer in int8_layers(model)]
    risky = [found for found in unseen if found.channels]
    if batches is None or not risky:
        return tuple(risky)
    seen = [_Observation(found.layer) for found in risky]
    _run(model, seen, batches, simulate=simulate)
    return tuple(found for observation in seen if (found := observation.result()).channels)


class _Observation:
    """The bounds, counts and energies of one layer so far."""

    def __init__(self, layer: Int8Layer) -> None:
        self._layer = layer
        self._bounds: tuple[Array, Array] | None = None
        self._sums = self._changed = 0
        self._signal = self._noise = 0.0

    @cached_property
    def _real(self) -> list[Array]:
        """The dequantized weights of each group, [K, N]."""
        layer = self._layer
        return [
            (filters.astype(np.float32) - layer.zero_points[layer.columns(group)])
            * layer.scales[layer.columns(group)].astype(np.float32)
            for group, filters in enumerate(layer.filters)
        ]

    @property
    def activation(self) -> str | None:
        """The tensor to observe, or None."""
        return self._layer.activation

    def see(self, value: Array) -> None:
        """Widen the bounds by a batch of activations, uint8."""
        lowest, highest = self._layer.bounds(value)
        if self._bounds is not None:
            lowest = np.minimum(lowest, self._bounds[0])
            highest = np.maximum(highest, self._bounds[1])
        self._bounds = lowest, highest

    def simulate(self, value: Array) -> None:
        """Count the sums of a batch that saturation changes, and add the energies of sums and errors."""
        layer = self._layer
        for group, rows in enumerate(layer.rows(value, ROWS)):
            excess = saturation_excess(rows, layer.filters[group])
            exact = (rows.astype(np.float32) - layer.zero_point) @ self._real[group]
            error = excess * layer.scales[layer.columns(group)]
            self._sums += excess.size
            self._changed += int(np.count_nonzero(excess))
            self._signal += float(np.square(exact, dtype=np.float64).sum())
            self._noise += float(np.square(error, dtype=np.float64).sum())

    def result(self) -> LayerSaturation:
        """The saturation found so far."""
        if not self._sums:
            return LayerSaturation(self._layer, self._bounds)
        drift = decibels(self._signal, self._noise)
        return LayerSaturation(self._layer, self._bounds, self._changed / self._sums, drift)


def _run(
    model: onnx.ModelProto,
    seen: Sequence[_Observation],
    batches: Iterable[Mapping[str, Array]],
    *,
    simulate: bool,
) -> None:
    by_tensor: dict[str, list[_Observation]] = {}
    for observation in seen:
        if observation.activation is not None:
            by_tensor.setdefault(observation.activation, []).append(observation)
    if not by_tensor:
        return
    observed = Observed(model, list(by_tensor))
    for feeds in batches:
        for values in observed.parts(feeds):
            for name, value in values.items():
                for observation in by_tensor[name]:
                    observation.see(as_unsigned(value))
                    if simulate:
                        observation.simulate(as_unsigned(value))
