"""Find the parameters of the network from which each weight of an exported graph is computed.

The exporter folds norms into convolutions and transposes matrices, and keeps no record of it. An experiment
finds the sources: a copy of the network gets random parameters, all different, and is exported. Each weight
of that graph is compared with all values that the exporter can have computed from the parameters. With the
source found, the weight can be computed again later from changed parameters, with gradients.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from bench.core.arrays import Array
from exporter.graphs.edits import copy_of, set_constant
from exporter.networks.layer_kinds import BatchNorm
from exporter.networks.network import deterministic

_TOLERANCE = 1e-5  # for float32 arithmetic in another order


@dataclass(frozen=True)
class WeightSource:
    """How to compute a weight of the graph.

    Attributes:
        parameter: name of a parameter or of a norm's statistic; None for the bias of a layer that has no
            bias itself and gets one from a folded norm.
        transposed: whether the graph holds the matrix transposed.
        norm: name of the BatchNorm that is folded in with its current statistics, or None.
        is_bias: whether this is the bias of a layer with a folded norm, and not its weight.
        outputs_axis: axis of the weight's output channels, which a folded norm scales.
        places: for each element, 1 + the position of its value among the values before, or 0 for a zero;
            None if no value moves.
    """

    parameter: str | None
    transposed: bool = False
    norm: str | None = None
    is_bias: bool = False
    outputs_axis: int = 0
    places: Array | None = field(default=None, compare=False)

    def value(self, module: nn.Module) -> Tensor:
        """The weight of the graph for the current parameters of the network.

        With a folded norm it is `weight * s` or `(bias - mean) * s + beta`, with
        s = gamma / sqrt(variance + epsilon) (Jacob et al., "Quantization and Training of Neural Networks",
        2018, section 3.2).
        """
        value = self._in_order(module)
        if self.places is None:
            return value
        places = torch.from_numpy(self.places).to(value.device)
        return torch.cat([value.new_zeros(1), value.reshape(-1)])[places]

    def _in_order(self, module: nn.Module) -> Tensor:
        value = torch.zeros(()) if self.parameter is None else _tensor(module, self.parameter)
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
        for value in _candidates(probe).values():
            value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
    return probe


def find_sources(model: onnx.ModelProto, probe: nn.Module) -> dict[str, WeightSource]:
    """Find the sources of the weights in the graph of `probe`.

    Args:
        model: the export of `probe`.
        probe: the network that `randomized` returned.

    Returns:
        Name of a weight -> its source. Weights without a source are constants, or are computed from
        parameters in a way that this module does not support.
    """
    tensors = {name: value.detach() for name, value in _candidates(probe).items()}
    norms = {name: child.num_features for name, child in probe.named_modules() if _is_norm(child)}
    found = {}
    for initializer in model.graph.initializer:
        if initializer.data_type == onnx.TensorProto.FLOAT:
            weight = torch.from_numpy(numpy_helper.to_array(initializer).copy())
            for source in _possible(initializer.name, weight, tensors, norms):
                made = source.value(probe).detach()
                if made.shape == weight.shape and torch.allclose(made, weight, _TOLERANCE, _TOLERANCE):
                    found[initializer.name] = source
                    break
    return found


def filled(
    model: onnx.ModelProto, sources: Mapping[str, WeightSource], module: nn.Module
) -> onnx.ModelProto:
    """A copy of the graph with the weights computed from the parameters of `module`."""
    result = copy_of(model)
    with torch.no_grad():
        for initializer in result.graph.initializer:
            if initializer.name in sources:
                value = np.ascontiguousarray(sources[initializer.name].value(module).numpy())
                set_constant(initializer, value)
    return result


def _possible(
    name: str, weight: Tensor, tensors: Mapping[str, Tensor], norms: Mapping[str, int]
) -> Iterator[WeightSource]:
    """The possible sources of a weight: each parameter, its transpose, and folded norms.

    The parameter with the name of the weight comes first.
    """
    sized = [key for key, value in tensors.items() if value.numel() == weight.numel()]
    for key in sorted(sized, key=lambda key: key != name):
        yield WeightSource(key)
        if tensors[key].ndim == 2:
            yield WeightSource(key, transposed=True)
    biases = [key for key in (None, name) if key is None or key in tensors]
    for norm, channels in norms.items():
        if weight.ndim == 1 and channels == len(weight):
            yield from (WeightSource(key, norm=norm, is_bias=True) for key in biases)
        elif weight.ndim > 1 and name in tensors:  # in a ConvTranspose, the second axis has the outputs
            axes = [axis for axis, size in enumerate(tensors[name].shape[:2]) if size == channels]
            yield from (WeightSource(name, norm=norm, outputs_axis=axis) for axis in axes)


def _candidates(module: nn.Module) -> dict[str, Tensor]:
    """Parameters, and the statistics of norms, by name."""
    candidates: dict[str, Tensor] = dict(module.named_parameters())
    for name, child in module.named_modules():
        if _is_norm(child):
            for statistic in ("running_mean", "running_var"):
                candidates[f"{name}.{statistic}" if name else statistic] = getattr(child, statistic)
    return candidates


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, BatchNorm) and module.running_mean is not None


def _tensor(module: nn.Module, name: str) -> Tensor:
    owner, _, attribute = name.rpartition(".")
    value: Tensor = getattr(module.get_submodule(owner), attribute)
    return value
