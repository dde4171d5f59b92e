"""Which int8 layers can saturate without VNNI, how often they do on samples, and what that costs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx

from bench.core.arrays import Array
from bench.metrics.parity import decibels
from exporter.graphs.inference import session_with_outputs
from exporter.inspection.saturation.dot import LEAST, MOST, pair_sums, saturation_excess
from exporter.inspection.saturation.layers import Int8Layer, as_unsigned, int8_layers

# Rows of sums (one sum per output channel) simulated per layer and batch.
ROWS = 1024


@dataclass(frozen=True)
class LayerSaturation:
    """What is known of the 16-bit sums of a layer.

    Attributes:
        bounds: smallest and largest byte of each input channel, or None where it was not observed.
        observed_share: share of the simulated sums that overflowing pairs changed; None if not observed.
        drift_sqnr_db: energy of the layer's exact sums over that of the errors that saturation makes, in
            dB; before bias, activation and rounding. None if not observed.
    """

    layer: Int8Layer
    bounds: tuple[Array, Array] | None
    observed_share: float | None = None
    drift_sqnr_db: float | None = None

    def risky(self, slack: int = 0) -> Array:
        """Which output channels have a pair of products that can overflow, in the kernel's pairing.

        Each activation may take any value between its channel's bounds, which are widened by `slack`
        levels; where it was not observed, any byte.

        Returns:
            Bool [N].
        """
        found = []
        for filters, lowest, highest in self._groups(slack):
            least, most = pair_sums(filters, lowest, highest)
            found.append(((least < LEAST) | (most > MOST)).any(axis=0))
        return np.concatenate(found)

    def safe_share(self, slack: int = 0) -> Array:
        """To what share of itself each output channel must shrink, so that none of its pairs can overflow.

        Activations are bounded as in `risky`. Rounding the smaller weights again may move each of them
        outward by a whole level, for which there is room.

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
        """Weights [K, N] of each group, and bounds of the activations at each k, widened."""
        for group, filters in enumerate(self.layer.filters):
            if self.bounds is None:
                lowest, highest = np.zeros(len(filters), np.int32), np.full(len(filters), 255, np.int32)
            else:
                low, high = (self.layer.along_k(bound, group).astype(np.int32) for bound in self.bounds)
                lowest, highest = np.maximum(low - slack, 0), np.minimum(high + slack, 255)
            yield filters, lowest, highest

    @cached_property
    def channels(self) -> int:
        """How many output channels can overflow."""
        return int(self.risky().sum())


def observe_saturation(
    model: onnx.ModelProto, batches: Iterable[Mapping[str, Array]] | None, *, simulate: bool = True
) -> tuple[LayerSaturation, ...]:
    """Find the layers of a quantized model that can saturate; the others are not listed.

    The graph runs as written, in float between its roundings, so that what is observed does not depend on
    the CPU at hand. A batch is reduced before the next one runs. Ranges rest on all activations; shares and
    drift on the sums of at most `ROWS` places (rows of a product) per layer and batch, at even distances.

    Args:
        model: a quantized model.
        batches: feeds, or None: then any byte may occur.
        simulate: also count what does overflow; else ranges alone are looked at, which is faster.
    """
    unseen = [LayerSaturation(layer, None) for layer in int8_layers(model)]
    risky = [found for found in unseen if found.channels]
    if batches is None or not risky:
        return tuple(risky)
    seen = [_Observation(found.layer) for found in risky]
    _run(model, seen, batches, simulate=simulate)
    return tuple(found for observation in seen if (found := observation.result()).channels)


class _Observation:
    """Running ranges, counts and energies of one layer."""

    def __init__(self, layer: Int8Layer) -> None:
        self._layer = layer
        self._bounds: tuple[Array, Array] | None = None
        self._sums = self._changed = 0
        self._signal = self._noise = 0.0

    @cached_property
    def _real(self) -> list[Array]:
        """The weights that the bytes stand for, [K, N] of each group."""
        layer = self._layer
        return [
            (filters.astype(np.float32) - layer.zero_points[layer.columns(group)])
            * layer.scales[layer.columns(group)].astype(np.float32)
            for group, filters in enumerate(layer.filters)
        ]

    @property
    def activation(self) -> str | None:
        """The tensor to look at."""
        return self._layer.activation

    def see(self, value: Array) -> None:
        """Widen the ranges by a batch of activations, uint8."""
        lowest, highest = self._layer.bounds(value)
        if self._bounds is not None:
            lowest = np.minimum(lowest, self._bounds[0])
            highest = np.maximum(highest, self._bounds[1])
        self._bounds = lowest, highest

    def simulate(self, value: Array) -> None:
        """Count the sums of a batch that overflows change; add up energies of exact sums and of errors."""
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
        """What was found so far."""
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
    session = session_with_outputs(model, list(by_tensor))
    computed = [o.name for o in session.get_outputs() if o.name in by_tensor]
    for feeds in batches:
        values = dict(zip(computed, session.run(computed, dict(feeds)), strict=True)) if computed else {}
        for name, observations in by_tensor.items():
            value = as_unsigned(np.asarray(values[name] if name in values else feeds[name]))
            for observation in observations:
                observation.see(value)
                if simulate:
                    observation.simulate(value)
