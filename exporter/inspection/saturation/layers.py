"""The int8 layers of a model as matrices of bytes, in the order in which the kernels sum them.

A convolution is a product of matrices. Its summed axis K runs over the kernel's positions, and for each
position over the channels of the group. This is true for both layouts. ONNX Runtime transposes NCHW to NHWC
before it gathers (qlinearconv.cc: ReorderFilter "from MCK1..Kn to K1...KnCM", Im2col<StorageOrder::NHWC>).
Its direct kernel (convsym.cpp: MlasConvSymPackW) iterates over positions first and over channels, a
multiple of four, second. Padding has the value of the zero point. Depthwise convolutions are left out: they
have special kernels that add in 32 bits (ConvSymKernelAvx2.S: DepthwiseMultiplyAccumulateCellAvx2,
qdwconv_avx2.cpp).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx
from onnx import numpy_helper

from bench.core.arrays import Array
from exporter.graphs.attributes import attributes_of
from exporter.graphs.index import GraphIndex

# Static operators, whose inputs are activation, scale, zero point, weight, scale, zero point.
_STATIC = {"QLinearConv", "QLinearMatMul", "QGemm"}
# Dynamic operators, whose activations are quantized at run time.
_DYNAMIC = {"ConvInteger", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"}
_CONVOLUTIONS = {"Conv", "QLinearConv", "ConvInteger"}
_BYTES = {onnx.TensorProto.UINT8, onnx.TensorProto.INT8}
_UNSIGNED_SHIFT = 128


@dataclass(frozen=True)
class Geometry:
    """The geometry of a convolution.

    Attributes:
        kernel, strides, dilations: one size per spatial axis.
        pads: the padding before each spatial axis, then after each; None if `auto_pad` determines it.
        auto_pad: the attribute `auto_pad` of the ONNX operator.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...] | None
    auto_pad: str

    def padding(self, sizes: tuple[int, ...]) -> list[tuple[int, int]]:
        """The padding before and after each spatial axis for an input of the given sizes."""
        if self.pads is not None:
            return list(zip(self.pads[: len(sizes)], self.pads[len(sizes) :], strict=True))
        found = []
        for size, kernel, stride, dilation in zip(
            sizes, self.kernel, self.strides, self.dilations, strict=True
        ):
            outputs = -(-size // stride)
            total = max(0, (outputs - 1) * stride + (kernel - 1) * dilation + 1 - size)
            small, large = total // 2, total - total // 2
            found.append((small, large) if self.auto_pad == "SAME_UPPER" else (large, small))
        return found


@dataclass(frozen=True)
class Int8Layer:
    """A product of uint8 activations by constant int8 weights.

    Attributes:
        name: name of the node.
        weight: name of the weight's initializer.
        axis: the weight's axis that has a scale per channel, or None if there is a single scale.
        filters: the weights of each group, int8 [K, N].
        scales: the weight scale of each output channel, float [groups x N].
        zero_points: the weight zero point of each output channel, int32 [groups x N].
        activation: the quantized input tensor, or None if it cannot be observed.
        zero_point: zero point of the activation as an unsigned byte.
        geometry: the geometry of a convolution, or None for a matrix product.
    """

    name: str
    weight: str
    axis: int | None
    filters: tuple[Array, ...]
    scales: Array
    zero_points: Array
    activation: str | None
    zero_point: int
    geometry: Geometry | None

    @cached_property
    def largest(self) -> Array:
        """Magnitude of each output channel's largest weight, int [N].

        If all channels share a scale, it is the largest magnitude of all weights. It is usually 127. It is
        smaller if the quantizer chose a coarser scale so that the bias fits in 32 bits.
        """
        magnitudes = [
            np.abs(filters.astype(np.int32) - self.zero_points[self.columns(group)]).max(axis=0, initial=0)
            for group, filters in enumerate(self.filters)
        ]
        largest = np.concatenate(magnitudes)
        return largest if self.axis is not None else np.full_like(largest, largest.max(initial=0))

    def bounds(self, value: Array) -> tuple[Array, Array]:
        """The smallest and largest byte of each input channel [C] or feature [K], including padding."""
        channels = 1 if self.geometry is not None else value.ndim - 1
        others = tuple(axis for axis in range(value.ndim) if axis != channels)
        lowest, highest = value.min(axis=others), value.max(axis=others)
        if self.geometry is not None and any(map(any, self.geometry.padding(value.shape[2:]))):
            lowest = np.minimum(lowest, np.uint8(self.zero_point))
            highest = np.maximum(highest, np.uint8(self.zero_point))
        return lowest, highest

    def along_k(self, channels: Array, group: int) -> Array:
        """Map values per input channel [C], for example bounds, to each k of a group's sums, [K]."""
        if self.geometry is None:
            return channels
        places = math.prod(self.geometry.kernel)
        size = len(self.filters[group]) // places
        return np.tile(channels[group * size : (group + 1) * size], places)

    def rows(self, value: Array, limit: int) -> tuple[Array, ...]:
        """The activations of each group's sums, uint8 [rows, K].

        Args:
            value: the activation, uint8 [B, C, ...] for a convolution, [..., K] for a product.
            limit: the largest number of rows; if there are more, evenly spaced ones are selected.
        """
        if self.geometry is None:
            flat = value.reshape(-1, value.shape[-1])
            return (flat[_even(len(flat), limit)],)
        gathered = _gather(value, self.geometry, self.zero_point, limit)
        size = gathered.shape[2] // len(self.filters)
        return tuple(
            gathered[:, :, group * size : (group + 1) * size].reshape(len(gathered), -1)
            for group in range(len(self.filters))
        )

    def columns(self, group: int) -> slice:
        """The output channels of a group."""
        size = self.filters[group].shape[1]
        return slice(group * size, (group + 1) * size)


def as_unsigned(value: Array) -> Array:
    """Quantized bytes as x86 kernels read them: signed bytes are shifted by 128 (qdq_s8_to_u8.cc)."""
    return value if value.dtype == np.uint8 else (value.astype(np.int16) + _UNSIGNED_SHIFT).astype(np.uint8)


def int8_layers(model: onnx.ModelProto) -> tuple[Int8Layer, ...]:
    """The layers of a quantized model (QDQ, QOperator or dynamic) that `vpmaddubsw` may compute.

    Layers with computed weights and products of two activations are not included.
    """
    index = GraphIndex.of(model.graph)
    found = []
    for node in index.nodes:
        operands = _operands(node, index)
        if operands is not None and (layer := _layer(node, operands, index.constants)) is not None:
            found.append(layer)
    return tuple(found)


@dataclass(frozen=True, kw_only=True)
class _Operands:
    """Names of the tensors that a node multiplies; `activation` is None if it is quantized at run time."""

    activation: str | None
    zero_point: str
    weight: str
    scale: str
    weight_zero_point: str
    axis: int


def _operands(node: onnx.NodeProto, index: GraphIndex) -> _Operands | None:
    if node.op_type in {"Conv", "Gemm", "MatMul"}:
        left, right = (index.maker(name, "DequantizeLinear") for name in node.input[:2])
        if left is None or right is None:
            return None
        activation, _, zero_point = _three(left)
        weight, scale, weight_zero_point = _three(right)
        axis = attributes_of(right).get("axis", 1)
    elif node.op_type in _STATIC:
        axis = 0 if node.op_type == "QLinearConv" or attributes_of(node).get("transB", 0) else 1
        activation, _, zero_point, weight, scale, weight_zero_point = node.input[:6]
    elif node.op_type in _DYNAMIC:
        activation, weight, axis = None, node.input[1], 0
        zero_point = scale = weight_zero_point = ""
    else:
        return None
    return _Operands(
        activation=activation,
        zero_point=zero_point,
        weight=weight,
        scale=scale,
        weight_zero_point=weight_zero_point,
        axis=axis,
    )


def _three(node: onnx.NodeProto) -> tuple[str, str, str]:
    """Tensor, scale and zero point of a DequantizeLinear; an absent zero point is an empty name."""
    tensor, scale, zero_point = (*node.input, "")[:3]
    return tensor, scale, zero_point


def _layer(
    node: onnx.NodeProto, operands: _Operands, constants: Mapping[str, onnx.TensorProto]
) -> Int8Layer | None:
    tensor = constants.get(operands.weight)
    if tensor is None or tensor.data_type != onnx.TensorProto.INT8 or operands.activation in constants:
        return None
    weight = numpy_helper.to_array(tensor)
    convolution = node.op_type in _CONVOLUTIONS
    if weight.ndim < (3 if convolution else 1):
        return None
    attributes = attributes_of(node)
    groups = int(attributes.get("group", 1)) if convolution else 1
    if convolution and weight.shape[1] == 1 and weight.shape[0] == groups:
        return None  # depthwise
    filters = _filters(weight, groups) if convolution else (_matrix(node, weight),)
    channels = sum(f.shape[1] for f in filters)
    zero_point = constants.get(operands.zero_point)
    if zero_point is not None and zero_point.data_type not in _BYTES:
        return None  # 16-bit activations have other kernels
    scale = constants.get(operands.scale)
    # Stacked or transposed operands are bounded but not observed.
    unusual = weight.ndim > 2 or attributes.get("transA", 0)
    if convolution:
        unusual = attributes.get("channels_last", 0)
    known = operands.activation is not None and zero_point is not None and not unusual
    return Int8Layer(
        name=node.name,
        weight=operands.weight,
        axis=operands.axis if scale is not None and scale.dims else None,
        filters=filters,
        scales=_per_channel(scale, channels, 1.0),
        zero_points=_per_channel(constants.get(operands.weight_zero_point), channels, 0),
        activation=operands.activation if known else None,
        zero_point=int(as_unsigned(numpy_helper.to_array(zero_point)).ravel()[0]) if zero_point else 0,
        geometry=_geometry(node, weight.shape[2:]) if convolution else None,
    )


def _filters(weight: Array, groups: int) -> tuple[Array, ...]:
    """Weights [M, C, ...] of a convolution as [K, M / groups] per group; K has positions, then channels."""
    outputs, inputs = weight.shape[:2]
    flat = weight.reshape(outputs, inputs, -1).transpose(2, 1, 0).reshape(-1, outputs)
    return tuple(np.split(flat, groups, axis=1))


def _matrix(node: onnx.NodeProto, weight: Array) -> Array:
    if attributes_of(node).get("transB", 0):
        return weight.T
    if weight.ndim < 2:
        return weight.reshape(-1, 1)
    # The columns of stacked matrices are placed side by side, so each of them is bounded.
    return np.moveaxis(weight, -2, 0).reshape(weight.shape[-2], -1)


def _geometry(node: onnx.NodeProto, kernel: tuple[int, ...]) -> Geometry:
    ones, attributes = (1,) * len(kernel), attributes_of(node)
    auto_pad = attributes.get("auto_pad", "NOTSET")
    pads = tuple(attributes.get("pads", (0,) * (2 * len(kernel))))
    return Geometry(
        kernel=kernel,
        strides=tuple(attributes.get("strides", ones)),
        dilations=tuple(attributes.get("dilations", ones)),
        pads=None if auto_pad.startswith("SAME") else pads,
        auto_pad=auto_pad,
    )


def _gather(value: Array, geometry: Geometry, zero_point: int, limit: int) -> Array:
    """Input bytes under the kernel at some output positions, uint8 [rows, positions of the kernel, C]."""
    sizes = value.shape[2:]
    padding = geometry.padding(sizes)
    padded = np.pad(value, [(0, 0), (0, 0), *padding], constant_values=zero_point)
    padded = np.moveaxis(padded, 1, -1)
    outputs = [
        (size - (kernel - 1) * dilation - 1) // stride + 1
        for size, kernel, stride, dilation in zip(
            padded.shape[1:-1], geometry.kernel, geometry.strides, geometry.dilations, strict=True
        )
    ]
    rows = _even(len(value) * math.prod(outputs), limit)
    sample, *places = np.unravel_index(rows, (len(value), *outputs))
    within = np.indices(geometry.kernel).reshape(len(geometry.kernel), -1)
    positions = [
        place[:, None] * stride + offset * dilation
        for place, offset, stride, dilation in zip(
            places, within, geometry.strides, geometry.dilations, strict=True
        )
    ]
    gathered: Array = padded[(sample[:, None], *positions)]
    return gathered


def _even(count: int, limit: int) -> Array:
    """At most `limit` evenly spaced indices below `count`."""
    return np.arange(count) if count <= limit else np.arange(limit) * count // limit


def _per_channel(tensor: onnx.TensorProto | None, channels: int, default: float) -> Array:
    value = np.asarray(default) if tensor is None else numpy_helper.to_array(tensor)
    return np.broadcast_to(value.ravel(), channels) if value.size in (1, channels) else np.ones(channels)
