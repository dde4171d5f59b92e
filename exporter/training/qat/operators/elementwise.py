"""Operators on single values: arithmetic, activations, comparisons, logic."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from exporter.training.qat.operators.table import Attributes, Operator

_SELU_ALPHA, _SELU_GAMMA = 1.67326319217681884765625, 1.05070102214813232421875  # defaults of ONNX


def _of_one(function: Callable[[Tensor], Tensor]) -> Operator:
    return lambda _, x: function(x)


def _of_two(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    return lambda _, x, y: function(x, y)


def _of_many(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    return lambda _, first, *others: functools.reduce(function, others, first)


def _clip(_: Attributes, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    return x if low is None and high is None else torch.clamp(x, low, high)


def _divided(x: Tensor, y: Tensor) -> Tensor:
    return x / y if x.is_floating_point() else torch.div(x, y, rounding_mode="trunc")


def _mod(attributes: Attributes, x: Tensor, y: Tensor) -> Tensor:
    return torch.fmod(x, y) if attributes.get("fmod") else torch.remainder(x, y)


def _shift(attributes: Attributes, x: Tensor, y: Tensor) -> Tensor:
    return x << y if attributes["direction"] == "LEFT" else x >> y


def _selu(attributes: Attributes, x: Tensor) -> Tensor:
    gamma = attributes.get("gamma", _SELU_GAMMA)
    result: Tensor = gamma * functional.elu(x, attributes.get("alpha", _SELU_ALPHA))
    return result


def _hard_sigmoid(attributes: Attributes, x: Tensor) -> Tensor:
    return torch.clamp(attributes.get("alpha", 0.2) * x + attributes.get("beta", 0.5), 0.0, 1.0)


def _shrink(attributes: Attributes, x: Tensor) -> Tensor:
    bias, limit = attributes.get("bias", 0.0), attributes.get("lambd", 0.5)
    return torch.where(x < -limit, x + bias, torch.where(x > limit, x - bias, torch.zeros_like(x)))


def _thresholded(attributes: Attributes, x: Tensor) -> Tensor:
    return torch.where(x > attributes.get("alpha", 1.0), x, torch.zeros_like(x))


def _is_infinite(attributes: Attributes, x: Tensor) -> Tensor:
    wanted = torch.zeros_like(x, dtype=torch.bool)
    if attributes.get("detect_positive", 1):
        wanted = wanted | x.isposinf()
    return wanted | x.isneginf() if attributes.get("detect_negative", 1) else wanted


OPERATORS: dict[str, Operator] = {
    "Abs": _of_one(torch.abs),
    "Acos": _of_one(torch.acos),
    "Acosh": _of_one(torch.acosh),
    "Add": _of_two(torch.add),
    "And": _of_two(torch.logical_and),
    "Asin": _of_one(torch.asin),
    "Asinh": _of_one(torch.asinh),
    "Atan": _of_one(torch.atan),
    "Atanh": _of_one(torch.atanh),
    "BitShift": _shift,
    "BitwiseAnd": _of_two(torch.bitwise_and),
    "BitwiseNot": _of_one(torch.bitwise_not),
    "BitwiseOr": _of_two(torch.bitwise_or),
    "BitwiseXor": _of_two(torch.bitwise_xor),
    "Ceil": _of_one(torch.ceil),
    "Celu": lambda attributes, x: functional.celu(x, attributes.get("alpha", 1.0)),
    "Clip": _clip,
    "Cos": _of_one(torch.cos),
    "Cosh": _of_one(torch.cosh),
    "Div": _of_two(_divided),
    "Dropout": lambda _, x, *_others: x,
    "Elu": lambda attributes, x: functional.elu(x, attributes.get("alpha", 1.0)),
    "Equal": _of_two(torch.eq),
    "Erf": _of_one(torch.erf),
    "Exp": _of_one(torch.exp),
    "Floor": _of_one(torch.floor),
    "Gelu": lambda attributes, x: functional.gelu(x, approximate=attributes.get("approximate", "none")),
    "Greater": _of_two(torch.gt),
    "GreaterOrEqual": _of_two(torch.ge),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _of_one(functional.hardswish),
    "Identity": lambda _, x: x,
    "IsInf": _is_infinite,
    "IsNaN": _of_one(torch.isnan),
    "LeakyRelu": lambda attributes, x: functional.leaky_relu(x, attributes.get("alpha", 0.01)),
    "Less": _of_two(torch.lt),
    "LessOrEqual": _of_two(torch.le),
    "Log": _of_one(torch.log),
    "Max": _of_many(torch.maximum),
    "Mean": lambda _, first, *others: functools.reduce(torch.add, others, first) / (1 + len(others)),
    "Min": _of_many(torch.minimum),
    "Mish": _of_one(functional.mish),
    "Mod": _mod,
    "Mul": _of_two(torch.mul),
    "Neg": _of_one(torch.neg),
    "Not": _of_one(torch.logical_not),
    "Or": _of_two(torch.logical_or),
    "Pow": lambda _, x, y: torch.pow(x, y).to(x.dtype),
    "PRelu": lambda _, x, slope: torch.where(x < 0, slope * x, x),
    "Reciprocal": _of_one(torch.reciprocal),
    "Relu": _of_one(torch.relu),
    "Round": _of_one(torch.round),
    "Selu": _selu,
    "Shrink": _shrink,
    "Sigmoid": _of_one(torch.sigmoid),
    "Sign": _of_one(torch.sign),
    "Sin": _of_one(torch.sin),
    "Sinh": _of_one(torch.sinh),
    "Softplus": _of_one(functional.softplus),
    "Softsign": _of_one(functional.softsign),
    "Sqrt": _of_one(torch.sqrt),
    "Sub": _of_two(torch.sub),
    "Sum": _of_many(torch.add),
    "Tan": _of_one(torch.tan),
    "Tanh": _of_one(torch.tanh),
    "ThresholdedRelu": _thresholded,
    "Where": lambda _, condition, x, y: torch.where(condition, x, y),
    "Xor": _of_two(torch.logical_xor),
}
