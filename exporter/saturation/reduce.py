"""Weights of 7 bits for the channels that could saturate without VNNI, and only for those."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx

from bench.arrays import Array
from exporter.saturation.layers import Int8Layer
from exporter.saturation.observe import observe_saturation

# What the quantizer is told of single tensors: its option TensorQuantOverrides.
Overrides = Mapping[str, list[dict[str, Any]]]

NO_OVERRIDES: Overrides = MappingProxyType({})

_QUANTIZED = "_quantized"
_LARGEST = 127
# Steps by which activations may shift once weights before them are reduced. It saves rounds of the search:
# three in place of five for EfficientNet-Lite0 at 224 px.
_SLACK = 8


def without_saturation(
    quantize: Callable[[Overrides], onnx.ModelProto],
    feeds: Callable[[], Iterator[dict[str, Array]]],
) -> tuple[onnx.ModelProto, dict[str, int]]:
    """Quantize with full weights, find the channels that can saturate on the samples, and reduce those.

    An output channel is reduced if activations within the ranges that the input channels take on the
    samples could overflow one of its pairs, whether or not they do. Weights of 7 bits lie in -64 ... 64,
    and 255 x (64 + 64) fits in 16 bits. Reduced weights shift the activations behind them by a little, so
    the search goes on until no channel is left that can saturate.

    Args:
        quantize: makes the model, given what the quantizer is to be told of single weights.
        feeds: calibration samples, batch by batch, each time it is called.

    Returns:
        The model, and how many channels of which layers were reduced, in graph order.
    """
    risky: dict[str, Array] = {}  # weight -> channels to reduce
    layers: dict[str, Int8Layer] = {}
    while True:
        model = quantize(
            {weight: _overrides(layers[weight], channels) for weight, channels in risky.items()}
        )
        fresh = False
        for found in observe_saturation(model, feeds(), simulate=False):
            weight = found.layer.weight.removesuffix(_QUANTIZED)
            layers.setdefault(weight, found.layer)  # the first has the scales of full weights
            before = risky.get(weight, np.zeros(len(found.layer.scales), bool))
            fresh = fresh or bool((found.risky() & ~before).any())
            risky[weight] = before | found.risky(_SLACK)
        if not fresh:
            return model, {layers[weight].name: int(channels.sum()) for weight, channels in risky.items()}


def _overrides(layer: Int8Layer, channels: Array) -> list[dict[str, Any]]:
    """Twice the range, and so half the steps, for some channels; its own range for each other."""
    if layer.axis is None:
        return [{"reduce_range": True}]
    if layer.activation is None:
        return [{"axis": layer.axis, "reduce_range": True}]
    ranges = np.where(channels, 2, 1) * _LARGEST * layer.scales
    return [{"axis": layer.axis, "rmin": -float(most), "rmax": float(most)} for most in ranges]
