"""Smaller integers for the weights of channels that could saturate without VNNI, and only for those."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
import onnx

from bench.core.arrays import Array
from exporter.graphs.targets import WEIGHT_LEVELS
from exporter.inspection.saturation.layers import Int8Layer, int8_layers
from exporter.inspection.saturation.observe import LayerSaturation, observe_saturation

# What the quantizer is told of single tensors: its option TensorQuantOverrides.
Override = dict[str, bool | int | float]
Overrides = Mapping[str, list[Override]]

NO_OVERRIDES: Overrides = MappingProxyType({})

_QUANTIZED = "_quantized"
# Weights of 7 bits: 255 x (64 + 64) fits in 16 bits whatever the activations are.
_SAFE = 64
# Levels by which activations may shift once weights before them are reduced. It saves rounds of the search.
_SLACK = 8
# Rounds in which channels get as many levels as they can have; those found later get `_SAFE`, which ends
# the search.
_ROUNDS = 8


@dataclass(frozen=True)
class Reduction:
    """The channels that must not have as many levels as they would.

    Attributes:
        layers: those with such channels, by the name of the weight, in graph order; with full weights.
        levels: of these weights, what the largest weight of each output channel becomes, [N]: 64 ... 127 in
            those channels, and what it is in the others.
    """

    layers: Mapping[str, Int8Layer] = field(default_factory=dict)
    levels: Mapping[str, Array] = field(default_factory=dict)

    def overrides(self) -> Overrides:
        """The same in the quantizer's terms."""
        return {name: _overrides(layer, self.levels[name]) for name, layer in self.layers.items()}

    def channels(self) -> dict[str, int]:
        """How many channels of which layers are reduced."""
        return {
            layer.name: int((self.levels[name] < layer.largest).sum())
            for name, layer in self.layers.items()
        }


NO_REDUCTION = Reduction()


def known_reduction(model: onnx.ModelProto, levels: Mapping[str, Array]) -> Reduction:
    """The reduction that gives layers of a model these levels.

    Args:
        model: quantized with full weights.
        levels: of some of its weights, [N], or one for all; what fits no layer is left out.
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
    start: Reduction = NO_REDUCTION,
) -> tuple[onnx.ModelProto, Reduction]:
    """Quantize, find the channels that can saturate on the samples, and give these fewer levels.

    An output channel is reduced if activations within the ranges that the input channels take on the
    samples could overflow one of its pairs, whether or not they do; and by as much as its worst pair asks
    for: its scale is coarser by 1 / `safe_share`, and seldom by the factor of two that ONNX Runtime's
    `reduce_range` costs. Reduced weights shift the activations after them by a little, so the search goes
    on until no channel is left that can saturate.

    Args:
        quantize: makes the model, given what the quantizer is to be told of single weights.
        feeds: calibration samples, batch by batch, each time it is called.
        start: what is known to be needed, for weights that have been rounded to that already.

    Returns:
        The model, and what was reduced.
    """
    layers, levels = dict(start.layers), dict(start.levels)
    rounds = 0
    while True:
        reduction = Reduction(dict(layers), dict(levels))
        model = quantize(reduction.overrides())
        fresh = False
        for found in observe_saturation(model, feeds(), simulate=False):
            weight = found.layer.weight.removesuffix(_QUANTIZED)
            layers.setdefault(weight, found.layer)  # the first has the scales of full weights
            before = reduction.levels.get(weight, found.layer.largest)
            fewer = _fewer(found, before, least=rounds >= _ROUNDS)
            levels[weight] = np.minimum(fewer, levels.get(weight, before))  # layers may share a weight
            fresh = fresh or bool((levels[weight] < before).any())
        if not fresh:
            return model, reduction
        rounds += 1


def _fewer(found: LayerSaturation, before: Array, *, least: bool) -> Array:
    """Levels of each channel, fewer than before in those that can saturate, and in no other."""
    wanted = np.full(len(before), _SAFE) if least else np.floor(before * found.safe_share(_SLACK))
    wanted = np.clip(wanted, _SAFE, before).astype(int)
    if found.layer.axis is None:
        return np.full(len(before), wanted.min())
    return np.where(found.risky(_SLACK), wanted, before)


def _overrides(layer: Int8Layer, levels: Array) -> list[Override]:
    """A range for each channel, of which its largest weight takes that many levels."""
    if layer.activation is None:
        return [{"reduce_range": True} | ({} if layer.axis is None else {"axis": layer.axis})]
    times = np.divide(layer.largest, levels, out=np.ones(len(levels)), where=levels > 0)
    ranges = WEIGHT_LEVELS * layer.scales * times
    if layer.axis is None:
        return [{"rmin": -float(ranges[0]), "rmax": float(ranges[0])}]
    return [{"axis": layer.axis, "rmin": -float(most), "rmax": float(most)} for most in ranges]
