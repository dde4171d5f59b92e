"""ONNX operators in PyTorch, to run an exported graph with gradients.

The operators are the ones in exported classifiers. Each follows the ONNX specification (opset 18 to 23).
The arguments of an operator are its attributes and its inputs; an omitted input is None.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import onnx
import torch
from torch import Tensor
from torch.nn import functional

from exporter.graphs.attributes import attributes_of
from exporter.graphs.domains import is_standard

Attributes = Mapping[str, Any]
Operator = Callable[..., Tensor | tuple[Tensor, ...]]

_DTYPES = {
    onnx.TensorProto.FLOAT: torch.float32,
    onnx.TensorProto.INT32: torch.int32,
    onnx.TensorProto.INT64: torch.int64,
    onnx.TensorProto.BOOL: torch.bool,
}
_CONVOLUTIONS = {3: functional.conv1d, 4: functional.conv2d, 5: functional.conv3d}
_MAX_POOLS = {3: functional.max_pool1d, 4: functional.max_pool2d, 5: functional.max_pool3d}
_AVERAGE_POOLS = {3: functional.avg_pool1d, 4: functional.avg_pool2d, 5: functional.avg_pool3d}
_TRANSPOSED = {
    3: functional.conv_transpose1d, 4: functional.conv_transpose2d, 5: functional.conv_transpose3d
}  # fmt: skip
_PLAIN_RESIZE = {
    "antialias": 0,
    "coordinate_transformation_mode": "half_pixel",
    "exclude_outside": 0,
    "keep_aspect_ratio_policy": "stretch",
}
_LINEAR_MODES = {3: "linear", 4: "bilinear", 5: "trilinear"}
_PAD_MODES = {"edge": "replicate", "wrap": "circular"}


def is_known(node: onnx.NodeProto) -> bool:
    """Whether `OPERATORS` can run this node with its attributes."""
    attributes = attributes_of(node)
    if not is_standard(node) or node.op_type not in OPERATORS:
        return False
    if attributes.get("auto_pad", "NOTSET") != "NOTSET" or attributes.get("storage_order"):
        return False
    if node.op_type == "AveragePool":  # PyTorch pads both sides equally, and has no dilation
        pads = attributes.get("pads", [])
        return pads[: len(pads) // 2] == pads[len(pads) // 2 :] and not attributes.get("dilations")
    if node.op_type == "ConvTranspose":  # PyTorch cuts both sides equally, and states no size
        pads = attributes.get("pads", [])
        return pads[: len(pads) // 2] == pads[len(pads) // 2 :] and "output_shape" not in attributes
    if node.op_type == "Resize":  # only the form that PyTorch exports: to a given size, linear, half pixels
        plain = all(attributes.get(name, value) == value for name, value in _PLAIN_RESIZE.items())
        return (
            plain
            and attributes.get("mode") == "linear"
            and len(node.input) == 4
            and "axes" not in attributes
        )
    return True


def _conv(attributes: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    convolve: Callable[..., Tensor] = _CONVOLUTIONS[x.ndim]
    x, pads = _padded(attributes, x, 0.0)
    strides, dilations = attributes.get("strides", 1), attributes.get("dilations", 1)
    return convolve(x, weight, bias, strides, pads, dilations, attributes.get("group", 1))


def _max_pool(attributes: Attributes, x: Tensor) -> Tensor:
    pool: Callable[..., Tensor] = _MAX_POOLS[x.ndim]
    x, pads = _padded(attributes, x, -math.inf)
    return pool(
        x,
        attributes["kernel_shape"],
        attributes.get("strides", 1),
        pads,
        attributes.get("dilations", 1),
        ceil_mode=bool(attributes.get("ceil_mode")),
    )


def _average_pool(attributes: Attributes, x: Tensor) -> Tensor:
    pool: Callable[..., Tensor] = _AVERAGE_POOLS[x.ndim]
    return pool(
        x,
        attributes["kernel_shape"],
        attributes.get("strides", 1),
        attributes.get("pads", [0, 0] * (x.ndim - 2))[: x.ndim - 2],
        ceil_mode=bool(attributes.get("ceil_mode")),
        count_include_pad=bool(attributes.get("count_include_pad")),
    )


def _padded(attributes: Attributes, x: Tensor, value: float) -> tuple[Tensor, list[int]]:
    """The input and the padding for a PyTorch layer, which can only pad both sides equally.

    If the sides differ, the input is padded here and the layer gets no padding.
    """
    pads = attributes.get("pads", [0, 0] * (x.ndim - 2))
    begin, end = pads[: len(pads) // 2], pads[len(pads) // 2 :]
    if begin == end:
        return x, begin
    flat = [side for pair in zip(reversed(begin), reversed(end), strict=True) for side in pair]
    return functional.pad(x, flat, value=value), [0] * len(begin)


def _gemm(attributes: Attributes, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    a = a.t() if attributes.get("transA") else a
    b = b.t() if attributes.get("transB") else b
    product: Tensor = attributes.get("alpha", 1.0) * (a @ b)
    return product if c is None else product + attributes.get("beta", 1.0) * c


def _batch_norm(attributes: Attributes, x: Tensor, *parameters: Tensor) -> Tensor:
    scale, bias, mean, variance = parameters
    return functional.batch_norm(x, mean, variance, scale, bias, eps=attributes.get("epsilon", 1e-5))


def _layer_norm(attributes: Attributes, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    axis = attributes.get("axis", -1) % x.ndim
    return functional.layer_norm(x, x.shape[axis:], scale, bias, attributes.get("epsilon", 1e-5))


def _reduce_mean(attributes: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
    keep = bool(attributes.get("keepdims", 1))
    if axes is None or not axes.numel():
        return x if attributes.get("noop_with_empty_axes") else x.mean(tuple(range(x.ndim)), keep)
    return x.mean(axes.tolist(), keep)


def _reshape(attributes: Attributes, x: Tensor, shape: Tensor) -> Tensor:
    copied = not attributes.get("allowzero")
    return x.reshape([x.shape[i] if not s and copied else s for i, s in enumerate(shape.tolist())])


def _resize(_: Attributes, x: Tensor, *roi_scales_sizes: Tensor | None) -> Tensor:
    sizes = roi_scales_sizes[-1]
    assert sizes is not None  # `is_known` accepts only nodes with sizes
    return functional.interpolate(x, sizes[2:].tolist(), mode=_LINEAR_MODES[x.ndim], align_corners=False)


def _flatten(attributes: Attributes, x: Tensor) -> Tensor:
    axis = attributes.get("axis", 1)
    return x.reshape(math.prod(x.shape[: axis + x.ndim if axis < 0 else axis]), -1)


def _slice(
    _: Attributes,
    x: Tensor,
    starts: Tensor,
    ends: Tensor,
    axes: Tensor | None = None,
    steps: Tensor | None = None,
) -> Tensor:
    along = range(starts.numel()) if axes is None else axes.tolist()
    strides = [1] * starts.numel() if steps is None else steps.tolist()
    for axis, start, end, step in zip(along, starts.tolist(), ends.tolist(), strides, strict=True):
        chosen = range(*slice(start, end, step).indices(x.shape[axis]))
        x = x.index_select(axis, torch.tensor(chosen, dtype=torch.int64, device=x.device))
    return x


def _split(attributes: Attributes, x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
    axis = attributes.get("axis", 0)
    if sizes is not None:
        return torch.split(x, sizes.tolist(), axis)
    return torch.split(x, -(-x.shape[axis] // attributes["num_outputs"]), axis)


def _unsqueeze(_: Attributes, x: Tensor, axes: Tensor) -> Tensor:
    rank = x.ndim + axes.numel()
    for axis in sorted(axis % rank for axis in axes.tolist()):
        x = x.unsqueeze(axis)
    return x


def _gather(attributes: Attributes, x: Tensor, index: Tensor) -> Tensor:
    axis = attributes.get("axis", 0) % x.ndim
    index = torch.where(index < 0, index + x.shape[axis], index)
    chosen = x.index_select(axis, index.reshape(-1))
    return chosen.reshape(*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])


def _conv_transpose(
    attributes: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    convolve: Callable[..., Tensor] = _TRANSPOSED[x.ndim]
    pads = attributes.get("pads", [0, 0] * (x.ndim - 2))
    return convolve(
        x,
        weight,
        bias,
        attributes.get("strides", 1),
        pads[: len(pads) // 2],
        attributes.get("output_padding", 0),
        attributes.get("group", 1),
        attributes.get("dilations", 1),
    )


def _depth_to_space(attributes: Attributes, x: Tensor) -> Tensor:
    size = attributes["blocksize"]
    if attributes.get("mode", "DCR") == "DCR":  # PyTorch moves the columns, then the rows of an output
        x = x.reshape(len(x), size * size, -1, *x.shape[2:]).transpose(1, 2).flatten(1, 2)
    return functional.pixel_shuffle(x, size)


def _shape(attributes: Attributes, x: Tensor) -> Tensor:
    return torch.tensor(x.shape[attributes.get("start", 0) : attributes.get("end")], device=x.device)


def _pad(
    attributes: Attributes,
    x: Tensor,
    pads: Tensor,
    value: Tensor | None = None,
    axes: Tensor | None = None,
) -> Tensor:
    chosen = list(range(x.ndim)) if axes is None else [axis % x.ndim for axis in axes.tolist()]
    begin, end = pads.reshape(2, -1).tolist()
    sides = {axis: (begin[i], end[i]) for i, axis in enumerate(chosen)}
    flat = [side for axis in reversed(range(x.ndim)) for side in sides.get(axis, (0, 0))]
    mode: str = attributes.get("mode", "constant")
    if mode == "constant":
        return functional.pad(x, flat, value=0.0 if value is None else value.item())
    while flat[-2:] == [0, 0]:  # PyTorch pads only the last dimensions in these modes
        flat = flat[:-2]
    return functional.pad(x, flat, _PAD_MODES.get(mode, mode))


OPERATORS: dict[str, Operator] = {
    "Abs": lambda _, x: x.abs(),
    "Add": lambda _, x, y: x + y,
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Cast": lambda attributes, x: x.to(_DTYPES[attributes["to"]]),
    "Clip": lambda _, x, low=None, high=None: torch.clamp(x, low, high),
    "Concat": lambda attributes, *parts: torch.cat(parts, attributes["axis"]),
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "DepthToSpace": _depth_to_space,
    "Div": lambda _, x, y: x / y if x.is_floating_point() else torch.div(x, y, rounding_mode="trunc"),
    "Elu": lambda attributes, x: functional.elu(x, attributes.get("alpha", 1.0)),
    "Erf": lambda _, x: x.erf(),
    "Exp": lambda _, x: x.exp(),
    "Expand": lambda _, x, shape: x * torch.ones(shape.tolist(), dtype=x.dtype, device=x.device),
    "Flatten": _flatten,
    "Gather": _gather,
    "Gelu": lambda attributes, x: functional.gelu(x, approximate=attributes.get("approximate", "none")),
    "Gemm": _gemm,
    "GlobalAveragePool": lambda _, x: x.mean(tuple(range(2, x.ndim)), keepdim=True),
    "HardSigmoid": lambda attributes, x: torch.clamp(
        attributes.get("alpha", 0.2) * x + attributes.get("beta", 0.5), 0.0, 1.0
    ),
    "HardSwish": lambda _, x: functional.hardswish(x),
    "Identity": lambda _, x: x,
    "LayerNormalization": _layer_norm,
    "LeakyRelu": lambda attributes, x: functional.leaky_relu(x, attributes.get("alpha", 0.01)),
    "Log": lambda _, x: x.log(),
    "MatMul": lambda _, x, y: x @ y,
    "Max": lambda _, first, *others: functools.reduce(torch.maximum, others, first),
    "MaxPool": _max_pool,
    "Min": lambda _, first, *others: functools.reduce(torch.minimum, others, first),
    "Mul": lambda _, x, y: x * y,
    "Neg": lambda _, x: -x,
    "Pad": _pad,
    "Pow": lambda _, x, y: x**y,
    "ReduceMean": _reduce_mean,
    "Relu": lambda _, x: x.relu(),
    "Reshape": _reshape,
    "Resize": _resize,
    "Shape": _shape,
    "Sigmoid": lambda _, x: x.sigmoid(),
    "Slice": _slice,
    "Softmax": lambda attributes, x: x.softmax(attributes.get("axis", -1)),
    "Softplus": lambda _, x: functional.softplus(x),
    "Split": _split,
    "Sqrt": lambda _, x: x.sqrt(),
    "Squeeze": lambda _, x, axes=None: x.squeeze() if axes is None else x.squeeze(tuple(axes.tolist())),
    "Sub": lambda _, x, y: x - y,
    "Tanh": lambda _, x: x.tanh(),
    "Transpose": lambda attributes, x: x.permute(attributes.get("perm", tuple(reversed(range(x.ndim))))),
    "Unsqueeze": _unsqueeze,
    "Where": lambda _, condition, x, y: torch.where(condition, x, y),
}
