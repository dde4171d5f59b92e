"""Constants, types, and the sizes of tensors."""

from __future__ import annotations

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor

from exporter.training.qat.operators.table import Attributes, Operator

_DTYPES = {
    onnx.TensorProto.BFLOAT16: torch.bfloat16,
    onnx.TensorProto.BOOL: torch.bool,
    onnx.TensorProto.DOUBLE: torch.float64,
    onnx.TensorProto.FLOAT: torch.float32,
    onnx.TensorProto.FLOAT16: torch.float16,
    onnx.TensorProto.INT16: torch.int16,
    onnx.TensorProto.INT32: torch.int32,
    onnx.TensorProto.INT64: torch.int64,
    onnx.TensorProto.INT8: torch.int8,
    onnx.TensorProto.UINT8: torch.uint8,
}


def is_known_type(attributes: Attributes) -> bool:
    """Whether PyTorch has the type that an operator converts to; not so for texts and 4-bit numbers."""
    return attributes.get("to", attributes.get("dtype", onnx.TensorProto.FLOAT)) in _DTYPES


def _constant(attributes: Attributes) -> Tensor:
    if "value" in attributes:
        return _tensor(attributes["value"])
    ((name, value),) = attributes.items()
    dtype = torch.float32 if name.startswith("value_float") else torch.int64
    return torch.tensor(value, dtype=dtype)


def _tensor(value: onnx.TensorProto) -> Tensor:
    return torch.from_numpy(numpy_helper.to_array(value).copy())


def _constant_of_shape(attributes: Attributes, shape: Tensor) -> Tensor:
    value = _tensor(attributes["value"]) if "value" in attributes else torch.zeros(1)
    return value.to(shape.device).reshape(()).expand(shape.tolist())


def _range(_: Attributes, start: Tensor, limit: Tensor, step: Tensor) -> Tensor:
    ends = start.item(), limit.item(), step.item()
    return torch.arange(*ends, dtype=start.dtype, device=start.device)


def _eye_like(attributes: Attributes, x: Tensor) -> Tensor:
    dtype = _DTYPES[attributes["dtype"]] if "dtype" in attributes else x.dtype
    rows, columns, first = *x.shape, attributes.get("k", 0)
    places = torch.arange(columns, device=x.device) - torch.arange(rows, device=x.device)[:, None]
    found: Tensor = (places == first).to(dtype)
    return found


def _shape(attributes: Attributes, x: Tensor) -> Tensor:
    chosen = x.shape[attributes.get("start", 0) : attributes.get("end")]
    return torch.tensor(chosen, dtype=torch.int64, device=x.device)


OPERATORS: dict[str, Operator] = {
    "Cast": lambda attributes, x: x.to(_DTYPES[attributes["to"]]),
    "CastLike": lambda _, x, like: x.to(like.dtype),
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "EyeLike": _eye_like,
    "Range": _range,
    "Shape": _shape,
    "Size": lambda _, x: torch.tensor(x.numel(), device=x.device),
}
