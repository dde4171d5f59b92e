"""Reduce the weight levels of channels that could saturate without VNNI, and only of those."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from types import MappingProxyType

import numpy as np
import onnx

from bench.core.arrays import Array
from exporter.graphs.targets import WEIGHT_LEVELS
from exporter.inspection.saturation.layers import Int8Layer, int8_layers
from exporter.inspection.saturation.observe import LayerSaturation, observe_saturation

# Settings for particular tensors: the quantizer's option TensorQuantOverrides.
Override = dict[str, bool | int | float]
Overrides = Mapping[str, list[Override]]

NO_OVERRIDES: Overrides = MappingProxyType({})

_QUANTIZED = "_quantized"
# With 7-bit weights, 255 x (64 + 64) fits in 16 bits for all activations.
_SAFE = 64
# Levels by which activations may shift after earlier weights are reduced. This saves rounds of the search.
_SLACK = 8
# In this many rounds, channels get as many levels as possible. Channels found later get `_SAFE`, which ends
# the search.
_ROUNDS = 8
# Batches of the first round. Most channels at risk show on any samples; all samples follow.
_FIRST_BATCHES = 8


@dataclass(frozen=True)
class Reduction:
    """The channels that get fewer weight levels to prevent saturation.

    Attributes:
        layers: the layers with such channels, by the name of the weight, in graph order. Their weights are
            those before the reduction.
        levels: by the name of the weight, the integer to which the largest weight of each output channel
            is rounded, [N]: 64 ... 127 in reduced channels, unchanged in the others.
    """

    layers: Mapping[str, Int8Layer] = field(default_factory=dict)
    levels: Mapping[str, Array] = field(default_factory=dict)

    def overrides(self) -> Overrides:
        """The reduction as overrides for the quantizer."""
        return {name: _overrides(layer, self.levels[name]) for name, layer in self.layers.items()}

    def channels(self) -> dict[str, int]:
        """The number of reduced channels of each layer, by the layer's name."""
        return {
            layer.name: int((self.levels[name] < layer.largest).sum())
            for name, layer in self.layers.items()
        }


NO_REDUCTION = Reduction()


def known_reduction(model: onnx.ModelProto, levels: Mapping[str, Array]) -> Reduction:
    """The reduction of a model for weight levels that are already known.

    Args:
        model: the quantized model without reduction.
        levels: the levels of some weights by name, [N], or one for all channels. Entries that fit no layer
            are ignored.
    """
    layers = {layer.weight.removesuffix(_QUANTIZED): layer for layer in int8_layers(model)}
    fitting = {
        name: layer
        for name, layer in layers.items()
        if name in levels and levels[name].size in (1, layer.scales.size)
    }
    return Reduction(
        fitting,
        {
            name: np.broadcast_to(levels[name].ravel(), layer.scales.shape)
            for name, layer in fitting.items()
        },
    )


def without_saturation(
    quantize: Callable[[Overrides], onnx.ModelProto],
    feeds: Callable[[], Iterator[dict[str, Array]]],
    plain: onnx.ModelProto,
    start: Reduction = NO_REDUCTION,
) -> tuple[onnx.ModelProto, Reduction]:
    """Quantize a model, and reduce the levels of channels that can saturate on the samples.

    An output channel is reduced if one of its pairs could overflow with any activations within the observed
    ranges of the input channels, even if no sample does. The reduction is as large as the worst pair
    requires: the scale becomes coarser by 1 / `safe_share`. This is rarely as much as the factor of two of
    ONNX Runtime's `reduce_range`. Reduced weights slightly change the activations after them, so the search
    repeats until no channel can saturate on any sample.

    Args:
        quantize: builds the int8 model with overrides for particular weights.
        feeds: returns the calibration samples, batch by batch, at each call.
        plain: the int8 model without overrides.
        start: the reduction to start from: that of an earlier search, or levels that the weights were
            rounded to.

    Returns:
        The model and its reduction.
    """
    layers, levels = dict(start.layers), dict(start.levels)
    model = quantize(start.overrides()) if levels else plain
    rounds, whole = 0, bool(levels)  # a known reduction usually suffices, so it is checked on all samples
    while True:
        batches = feeds() if whole else islice(feeds(), _FIRST_BATCHES)
        known = dict(levels)
        fresh = False
        for found in observe_saturation(model, batches, simulate=False):
            weight = found.layer.weight.removesuffix(_QUANTIZED)
            before = known.get(weight, found.layer.largest)
            fewer = _fewer(found, before, least=rounds >= _ROUNDS)
            if (fewer < before).any():
                fresh = True
                layers.setdefault(weight, found.layer)  # the first round has the unreduced scales
                levels[weight] = np.minimum(fewer, levels.get(weight, before))  # layers may share it
        if whole and not fresh:
            return model, Reduction(layers, levels)
        if fresh:
            model = quantize(Reduction(layers, levels).overrides())
            rounds = min(rounds + 1, _ROUNDS)
        whole = True


def _fewer(found: LayerSaturation, before: Array, *, least: bool) -> Array:
    """The new levels of each channel: fewer in channels that can saturate, otherwise unchanged.

    Args:
        found: the observed saturation of a layer.
        before: the level of each channel.
        least: whether channels that can saturate get levels that are safe for all activations.
    """
    wanted = np.full(len(before), _SAFE) if least else np.floor(before * found.safe_share(_SLACK))
    wanted = np.clip(wanted, _SAFE, before).astype(int)
    if found.layer.axis is None:
        return np.full(len(before), wanted.min())
    return np.where(found.risky(_SLACK), wanted, before)


def _overrides(layer: Int8Layer, levels: Array) -> list[Override]:
    """For each channel, the range for which its largest weight is rounded to the given level."""
    if layer.activation is None:
        return [{"reduce_range": True} | ({} if layer.axis is None else {"axis": layer.axis})]
    times = np.divide(layer.largest, levels, out=np.ones(len(levels)), where=levels > 0)
    ranges = WEIGHT_LEVELS * layer.scales * times
    if layer.axis is None:
        return [{"rmin": -float(ranges[0]), "rmax": float(ranges[0])}]
    return [{"axis": layer.axis, "rmin": -float(most), "rmax": float(most)} for most in ranges]
