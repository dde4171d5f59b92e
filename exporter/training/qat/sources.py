"""Find the parameters of the network from which each weight of an exported graph is computed.

The exporter folds norms into convolutions, transposes matrices and computes constants, and keeps no record
of it. An experiment finds the sources: a copy of the network gets random parameters, all different, and is
exported. Each weight of that graph is compared with all values that the exporter can have computed from the
parameters (`constant_graph`). With the source found, the weight can be computed again later from changed
parameters, with gradients.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from bench.core.arrays import Array
from exporter.graphs.edits import copy_of, set_constant
from exporter.networks.layer_kinds import BatchNorm
from exporter.networks.network import deterministic
from exporter.training.qat.constant_graph import ConstantGraph, is_norm, parameters_of

_TOLERANCE = 1e-5  # for float32 arithmetic in another order


@dataclass(frozen=True)
class WeightSource:
    """How to compute a weight of the graph.

    Attributes:
        graph: the computations of the network that depend on parameters alone.
        tensor: name of a parameter, of a norm's statistic, or of a tensor of `graph`; None for the bias of
            a layer that has no bias itself and gets one from a folded norm.
        transposed: whether the model holds the matrix transposed.
        norm: name of the BatchNorm that is folded in with its current statistics, or None.
        is_bias: whether this is the bias of a layer with a folded norm, and not its weight.
        outputs_axis: axis of the weight's output channels, which a folded norm scales.
        places: for each element, 1 + the position of its value among the values before, or 0 for a zero;
            None if no value moves.
        factor: by which the quantizer multiplies the values before.
        shape: the shape of the weight; None for that of the tensor.
    """

    graph: ConstantGraph = field(repr=False)
    tensor: str | None
    transposed: bool = False
    norm: str | None = None
    is_bias: bool = False
    outputs_axis: int = 0
    places: Array | None = field(default=None, compare=False)
    factor: float = 1.0
    shape: tuple[int, ...] | None = None

    def value(self, module: nn.Module) -> Tensor:
        """The weight of the graph for the current parameters of the network.

        With a folded norm it is `weight * s` or `(bias - mean) * s + beta`, with
        s = gamma / sqrt(variance + epsilon) (Jacob et al., "Quantization and Training of Neural Networks",
        2018, section 3.2).
        """
        value = self._in_order(module)
        if self.factor != 1.0:
            value = value * self.factor
        if self.places is not None:
            places = torch.from_numpy(self.places).to(value.device)
            value = torch.cat([value.new_zeros(1), value.reshape(-1)])[places]
        return value if self.shape is None else value.reshape(self.shape)

    def _in_order(self, module: nn.Module) -> Tensor:
        value = torch.zeros(()) if self.tensor is None else self.graph.value(self.tensor, module)
        if self.norm is not None:
            norm = module.get_submodule(self.norm)
            assert isinstance(norm, BatchNorm)
            assert norm.running_mean is not None
            assert norm.running_var is not None
            scale = torch.rsqrt(norm.running_var + norm.eps)
            scale = scale if norm.weight is None else norm.weight * scale
            if self.is_bias:
                value = (value.to(scale.device) - norm.running_mean) * scale
                return value if norm.bias is None else value + norm.bias
            value = value * scale.view([-1 if n == self.outputs_axis else 1 for n in range(value.ndim)])
        return value.t() if self.transposed else value


def randomized(module: nn.Module) -> nn.Module:
    """A copy with random parameters and norm statistics in [0.5, 1.5), including pruned weights."""
    probe = copy.deepcopy(module)
    with deterministic(0, "weight sources") as generator, torch.no_grad():
        for value in {id(value): value for value in parameters_of(probe).values()}.values():
            value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
    return probe


def find_sources(model: onnx.ModelProto, graph: ConstantGraph, probe: nn.Module) -> dict[str, WeightSource]:
    """Find the sources of the weights in the graph of `probe`.

    Args:
        model: the export of `probe`.
        graph: the constant part of the same export, before it is folded.
        probe: the network that `randomized` returned.

    Returns:
        Name of a weight -> its source. Weights without a source are constants, or are computed from
        parameters in a way that this module does not support.
    """
    with torch.no_grad():
        values = {name: value for name, value in graph.values(probe).items() if value.is_floating_point()}
        norms = {name: child.num_features for name, child in probe.named_modules() if is_norm(child)}
        found = {}
        for initializer in model.graph.initializer:
            if initializer.data_type == onnx.TensorProto.FLOAT and np.prod(initializer.dims):
                weight = torch.from_numpy(numpy_helper.to_array(initializer).copy())
                possible = _possible(initializer.name, weight, values, norms, graph)
                if (source := _closest(weight, possible, probe)) is not None:
                    found[initializer.name] = source
    return found


def filled(
    model: onnx.ModelProto, sources: Mapping[str, WeightSource], module: nn.Module
) -> onnx.ModelProto:
    """A copy of the graph with the weights computed from the parameters of `module`."""
    result = copy_of(model)
    with torch.no_grad():
        for initializer in result.graph.initializer:
            if initializer.name in sources:
                value = sources[initializer.name].value(module).numpy()
                set_constant(initializer, np.array(value, order="C"))
    return result


def _closest(weight: Tensor, possible: Iterator[WeightSource], probe: nn.Module) -> WeightSource | None:
    """The source whose value is closest to a weight, because rounded values of two may be almost equal."""
    best, least = None, _TOLERANCE
    for candidate in possible:
        made = candidate.value(probe)
        if made.numel() != weight.numel():
            continue
        error = float(((made.reshape(weight.shape) - weight).abs() / (1 + weight.abs())).max())
        if error <= least:
            best, least = replace(candidate, shape=tuple(weight.shape)), error
        if best is not None and least == 0.0:
            break
    return best


def _possible(
    name: str,
    weight: Tensor,
    values: Mapping[str, Tensor],
    norms: Mapping[str, int],
    graph: ConstantGraph,
) -> Iterator[WeightSource]:
    """The possible sources of a weight: each tensor of its size, its transpose, and folded norms.

    The tensor with the name of the weight comes first.
    """
    sized = [key for key, value in values.items() if value.numel() == weight.numel()]
    for key in sorted(sized, key=lambda key: key != name):
        yield WeightSource(graph, key)
        if values[key].ndim == 2:
            yield WeightSource(graph, key, transposed=True)
    biases = [key for key in (None, name) if key is None or key in values]
    for norm, channels in norms.items():
        if weight.ndim == 1 and channels == len(weight):
            yield from (WeightSource(graph, key, norm=norm, is_bias=True) for key in biases)
        elif weight.ndim > 1 and name in values:  # in a ConvTranspose, the second axis has the outputs
            axes = [axis for axis, size in enumerate(values[name].shape[:2]) if size == channels]
            yield from (WeightSource(graph, name, norm=norm, outputs_axis=axis) for axis in axes)
