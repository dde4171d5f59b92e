"""The int8 graph of a network, run in PyTorch with gradients on the network's own parameters.

ONNX Runtime's quantizer created the graph. The graph defines the rounded tensors, the nodes that
read them, and the layers with int8 weights. Layers compute sums of integers and round them like ONNX
Runtime's kernels. The outputs in training are therefore almost bit-identical to the deployed model's
outputs.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from bench.core.arrays import Array
from exporter.errors import StageError
from exporter.graphs.attributes import attributes_of
from exporter.graphs.domains import is_standard
from exporter.graphs.index import GraphIndex
from exporter.graphs.ranges import Range
from exporter.graphs.targets import WEIGHT_LEVELS, Target
from exporter.graphs.trained_qparams import TrainedQparams
from exporter.training.qat.operators import OPERATORS, Attributes, is_known
from exporter.training.qat.rounding import (
    Limits,
    Rounded,
    channel_maxima,
    round_activation,
    round_bias,
    round_weight,
)
from exporter.training.qat.sources import WeightSource

# Ends of ranges are learned as factors exp(RANGE_RATE * shift) on their initial values. One step of Adam
# then changes every end by the same fraction: a thousandth at the usual learning rate of 1e-4.
RANGE_RATE = 10.0
# What to do with a network that cannot be trained; an alternative may follow.
WITHOUT_QAT = "remove this stage (all others work, and quantize makes an int8 model without it)"
# Input or output of a node: real numbers, or integers with their scale.
Value = Tensor | Rounded
_QUANTIZE, _DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
_WEIGHTED = frozenset({"Conv", "Gemm", "MatMul"})
_SCALE, _ZERO_POINT, _QUANTIZED = "_scale", "_zero_point", "_quantized"
_FLOAT, _LIMITS = ".float", ".limits"


@dataclass(frozen=True)
class _Node:
    """A node of the graph; `over` names the values that no later node reads."""

    operator: str
    attributes: Attributes
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    over: tuple[str, ...]


@dataclass(frozen=True)
class _Weight:
    """How to round a parameter that the int8 model stores as integers.

    Attributes:
        source: the source of the float value.
        kind: `weight` of a layer; the layer's int32 `bias`, which the layer rounds itself; or `operand` of
            an elementwise operator, which is rounded like an activation.
        axis: axis of the channels, which have one scale each; None for one scale.
        scale: name of the scale in the int8 model.
        limits: name of the constant with the `limits` for `round_weight`; only a `weight` has it.
    """

    source: WeightSource
    kind: Literal["weight", "bias", "operand"]
    axis: int | None
    scale: str
    limits: str


class Student(nn.Module):
    """The int8 model as a module: inputs [N, ...] -> outputs in float.

    The graph is in evaluation mode: dropout is off and norms keep their statistics, so batches of one
    sample work too.

    Attributes:
        network: the module whose parameters are rounded and trained.
        tensors: names of the rounded activations.
        low_shift: learned positions of the lower ends of the ranges, as exponents, [tensors].
        high_shift: learned positions of the upper ends of the ranges, as exponents, [tensors].
        steps: number of batches trained on.
    """

    # Prefix of the network's own parameters in this module's state; the training loop removes it when it
    # saves a checkpoint of the network.
    wrapped_prefix = "network."

    def __init__(
        self,
        network: nn.Module,
        quantized: onnx.ModelProto,
        sources: Mapping[str, WeightSource],
        *,
        target: Target,
        learnable: Collection[str],
        inputs: Sequence[str],
        place: str,
        range_steps: int | None = None,
        moved: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Read the graph.

        Args:
            network: the module to train.
            quantized: the QDQ model of `network`, written by `quantize_model`.
            sources: sources of the weights of the exported float model.
            target: the target of the quantized model.
            learnable: the activations whose ranges are learned; the other ranges do not change.
            inputs: names of the inputs in the order of `forward`.
            place: the stage or key that error messages name.
            range_steps: number of steps for which ranges are learned; None for all steps.
            moved: activations of `quantized` -> the activations of the float model with the same values;
                they share a range.

        Raises:
            StageError: an operator cannot be run with gradients.
        """
        super().__init__()
        self.network = network
        self.range_steps = range_steps
        self._sources, self._inputs = dict(sources), tuple(inputs)
        self._limits: Limits = (-128, 127) if target.signed_activations else (0, 255)
        graph = quantized.graph
        self._output = graph.output[0].name
        self._nodes = _read_nodes(graph, place)
        constants = _constants(graph)
        self._find_ranges(constants, learnable, moved)
        self._find_weights(constants)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def _find_ranges(
        self, constants: Mapping[str, Tensor], learnable: Collection[str], moved: Mapping[str, str]
    ) -> None:
        """Find the activation that each QuantizeLinear rounds, and its initial range."""
        ranges: dict[str, tuple[float, float]] = {}
        # Output of a QuantizeLinear -> index of the activation, and the factor that its scale includes.
        self._rounds: dict[str, tuple[int, float]] = {}
        for node in self._nodes:
            if node.operator == _QUANTIZE:
                name = node.inputs[2].removesuffix(_ZERO_POINT)
                # The scale of a node may differ from the activation's scale: see `rewrites.hard_swish`.
                scale, zero_point = constants[f"{name}{_SCALE}"], constants[node.inputs[2]]
                low, high = ((limit - zero_point.double()) * scale.double() for limit in self._limits)
                name = moved.get(name, name)
                ranges.setdefault(name, (low.item(), high.item()))
                factor = float(constants[node.inputs[1]] / scale)
                self._rounds[node.outputs[0]] = list(ranges).index(name), factor
        self.tensors = tuple(ranges)
        start = torch.tensor(list(ranges.values()), dtype=torch.float32).reshape(-1, 2)
        self.register_buffer("_start", start.t())
        self.register_buffer("_learnable", torch.tensor([name in learnable for name in ranges]))
        self.low_shift = nn.Parameter(torch.zeros(len(ranges)))
        self.high_shift = nn.Parameter(torch.zeros(len(ranges)))

    def _find_weights(self, constants: dict[str, Tensor]) -> None:
        """Find the weights that come from parameters; store all other constants as buffers, in float."""
        layers = {node.inputs[1] for node in self._nodes if node.operator in _WEIGHTED}
        # Output of a DequantizeLinear -> the parameter to round for it.
        self._weights: dict[str, _Weight] = {}
        for node in self._nodes:
            if node.operator != _DEQUANTIZE or node.inputs[0] not in constants:
                continue
            stored, scale, zero_point = (constants[name] for name in node.inputs)
            axis = node.attributes.get("axis", 1) if scale.ndim else None
            name = node.inputs[0].removesuffix(_QUANTIZED)
            if name not in self._sources:
                shape = [-1 if i == axis else 1 for i in range(stored.ndim)]
                scale, zero_point = (v.view(shape if v.ndim else []) for v in (scale, zero_point))
                constants[node.outputs[0]] = ((stored.double() - zero_point) * scale).float()
                continue
            source = replace(self._sources[name], shape=tuple(stored.shape))
            limits = f"{name}{_LIMITS}"
            kind: Literal["weight", "bias", "operand"] = "operand"
            if stored.dtype == torch.int32:
                kind = "bias"
            elif node.outputs[0] in layers:
                kind = "weight"
                constants[limits] = _limits(source.value(self.network), axis, scale)
            self._weights[node.outputs[0]] = _Weight(source, kind, axis, node.inputs[1], limits)
        self._find_float_weights(constants)
        self._constants = {name: f"_constant_{index}" for index, name in enumerate(constants)}
        for name, buffer in self._constants.items():
            self.register_buffer(buffer, constants[name], persistent=False)

    def _find_float_weights(self, constants: Mapping[str, Tensor]) -> None:
        """Find the weights that float operators read, and the tables in 8 bits that lookups read."""
        # Name of a constant -> its source. See `quantization.shared_constants` for the second name.
        self._floats = {
            name: self._sources[original]
            for name, constant in constants.items()
            if (original := name if name in self._sources else name.removesuffix(_FLOAT)) in self._sources
            and constant.is_floating_point()
        }
        read = {name for node in self._nodes if node.operator == "Gather" for name in node.inputs[:1]}
        # Name of a table -> its source. See `quantization.embedding_tables`.
        self._tables = {
            name: source for name, source in self._sources.items() if f"{name}{_QUANTIZED}" in read
        }

    def forward(self, *_inputs: Tensor) -> Tensor:
        """Run the graph, always in float32: bfloat16 is too coarse to distinguish 8-bit levels."""
        if self.training:
            self.get_buffer("steps").add_(1)
        with torch.autocast(_inputs[0].device.type, enabled=False):
            return self._run(_inputs)

    def _run(self, inputs: Sequence[Tensor]) -> Tensor:
        values: dict[str, Value] = dict(zip(self._inputs, inputs, strict=True))
        values |= self._rounded_tables()
        low, high = self._ends()
        for node in self._nodes:
            made: Value | tuple[Value, ...]
            if node.operator == _QUANTIZE:
                index, factor = self._rounds[node.outputs[0]]
                made = round_activation(
                    values[node.inputs[0]], low[index], high[index], self._limits, factor
                )
            elif node.operator == _DEQUANTIZE:
                made = self._dequantized(node, values)
            else:
                made = _apply(node, [self._value(name, values) if name else None for name in node.inputs])
            made = (made,) if isinstance(made, Tensor | Rounded) else made
            values |= zip(node.outputs, made, strict=False)
            for name in node.over:
                values.pop(name, None)
        return _real(values[self._output])

    def _value(self, name: str, values: Mapping[str, Value]) -> Value:
        """An activation, a parameter that is not rounded, or a constant."""
        if name in values:
            return values[name]
        if name in self._floats:
            return self._floats[name].value(self.network)
        return self.get_buffer(self._constants[name])

    def _rounded_tables(self) -> dict[str, Value]:
        """The levels [rows, columns] and scales [rows, 1] of the tables that are stored in 8 bits."""
        found: dict[str, Value] = {}
        for name, source in self._tables.items():
            rounded = round_weight(source.value(self.network), 0, self.low_shift.new_tensor(WEIGHT_LEVELS))
            found |= {
                f"{name}{_QUANTIZED}": rounded.levels, f"{name}{_SCALE}": rounded.along(rounded.scale)
            }  # fmt: skip
        return found

    def _dequantized(self, node: _Node, values: Mapping[str, Value]) -> Value:
        """The output of a DequantizeLinear; it stays in integers until a node needs real numbers."""
        if node.inputs[0] in values:
            return values[node.inputs[0]]
        weight = self._weights.get(node.outputs[0])
        if weight is None:
            return self.get_buffer(self._constants[node.outputs[0]])
        value = weight.source.value(self.network)
        if weight.kind == "weight":
            return round_weight(value, weight.axis, self.get_buffer(self._constants[weight.limits]))
        if weight.kind == "operand":
            return round_activation(value, value.detach().amin(), value.detach().amax(), self._limits)
        return value

    def train(self, mode: bool = True) -> Student:
        """Set the mode; the inner network always stays in evaluation mode, like its graph."""
        super().train(mode)
        self.network.eval()
        return self

    def follow(self, quantized: onnx.ModelProto) -> None:
        """Set the weights' level limits from an int8 model that was quantized after training.

        After training, other channels may be at risk of saturation; in that model they have fewer levels.
        """
        scales = _constants(quantized.graph)
        for weight in self._weights.values():
            if weight.kind == "weight":
                limits = _limits(weight.source.value(self.network), weight.axis, scales[weight.scale])
                self.get_buffer(self._constants[weight.limits]).copy_(limits)

    def trained_qparams(self) -> TrainedQparams:
        """The qparams with which the quantizer builds the same int8 model from the trained weights."""
        levels: dict[str, Array] = {}
        for weight in self._weights.values():
            if weight.kind == "weight":
                limits = self.get_buffer(self._constants[weight.limits])
                name = weight.limits.removesuffix(_LIMITS)
                levels[name] = limits.round().clamp(max=WEIGHT_LEVELS).numpy().astype(np.int64)
        return TrainedQparams(
            self._ranges(), {name: most for name, most in levels.items() if most.min() < WEIGHT_LEVELS}
        )

    def _ranges(self) -> dict[str, Range]:
        """The learned ranges: tensor -> real values, which float32 represents exactly."""
        low, high = (ends.tolist() for ends in self._ends())
        chosen = self.get_buffer("_learnable").tolist()
        return {
            name: Range(*ends)
            for name, learns, *ends in zip(self.tensors, chosen, low, high, strict=True)
            if learns
        }

    def _ends(self) -> tuple[Tensor, Tensor]:
        rate = RANGE_RATE * self.get_buffer("_learnable")
        low, high = self.get_buffer("_start")
        low, high = low * (rate * self.low_shift).exp(), high * (rate * self.high_shift).exp()
        over = self.range_steps is not None and int(self.get_buffer("steps")) > self.range_steps
        return (low.detach(), high.detach()) if over else (low, high)


def _apply(node: _Node, inputs: Sequence[Value | None]) -> Value | tuple[Tensor, ...]:
    """Run an operator; use integers if ONNX Runtime's kernel computes its sums in integers."""
    x, weight = (*inputs, None)[:2]
    if (
        node.operator in _WEIGHTED
        and isinstance(x, Rounded)
        and isinstance(weight, Rounded)
        and x.axis is None
    ):
        scale = x.scale * weight.scale
        bias = [round_bias(_real(b), scale) for b in inputs[2:] if b is not None]
        sums = OPERATORS[node.operator](node.attributes, x.levels, weight.levels, *bias)
        assert isinstance(sums, Tensor)
        return Rounded(sums, scale, None if weight.axis is None else 1 if node.operator == "Conv" else -1)
    if node.operator == "GlobalAveragePool" and isinstance(x, Rounded):
        places = math.prod(x.levels.shape[2:])
        return Rounded(x.levels.sum(tuple(range(2, x.levels.ndim)), keepdim=True), x.scale / places, x.axis)
    return OPERATORS[node.operator](node.attributes, *(None if v is None else _real(v) for v in inputs))


def _real(value: Value) -> Tensor:
    return value.real() if isinstance(value, Rounded) else value


def _limits(weight: Tensor, axis: int | None, scale: Tensor) -> Tensor:
    """The level of each channel's largest weight in the int8 model: about 127, and less in some channels.

    It is not rounded, so `round_weight` computes exactly the same scale while the weights do not change.
    """
    limits = channel_maxima(weight, axis).double() / scale.double()
    return torch.where(limits > 0, limits, float(WEIGHT_LEVELS))


def _constants(graph: onnx.GraphProto) -> dict[str, Tensor]:
    index = GraphIndex.of(graph)
    return {name: torch.from_numpy(index.constant(name).copy()) for name in index.constants}


def _read_nodes(graph: onnx.GraphProto, place: str) -> list[_Node]:
    last: dict[str, int] = {}
    for index, node in enumerate(graph.node):
        if node.op_type not in {_QUANTIZE, _DEQUANTIZE} and not is_known(node):
            name = node.op_type if is_standard(node) else f"{node.domain}.{node.op_type}"
            raise StageError(
                place,
                f"node {node.name!r} has the operator {name}, which cannot be trained",
                f"{WITHOUT_QAT}, or write the network without this operator",
            )
        last |= dict.fromkeys((*node.input, *node.output), index)
    last |= {value.name: len(graph.node) for value in graph.output}
    return [
        _Node(
            node.op_type,
            attributes_of(node),
            tuple(node.input),
            tuple(node.output),
            tuple(name for name in (*node.input, *node.output) if last[name] == index),
        )
        for index, node in enumerate(graph.node)
    ]
