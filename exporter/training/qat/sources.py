"""Which weights of an exported graph come from which parameters of the network.

The exporter folds norms into convolutions and transposes matrices, and keeps no record of it. So it is
found by experiment: a copy of the network gets random parameters, all different, and is exported; each
weight of that graph is then compared with what the parameters can have been made into. What is found says
how to compute the weight again, with gradients, from whatever the parameters hold later.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from exporter.graphs.edits import copy_of, set_constant
from exporter.networks.layer_kinds import BatchNorm
from exporter.networks.network import deterministic

_TOLERANCE = 1e-5  # float32 arithmetic in another order


@dataclass(frozen=True)
class WeightSource:
    """How to compute a weight of the graph.

    Attributes:
        parameter: name of a parameter or of a norm's statistic; None for the bias that a folded norm gives
            a layer without one.
        transposed: whether the graph holds the matrix transposed.
        norm: name of the BatchNorm folded in, its statistics as they are, or None.
        is_bias: which part of the folded layer it is.
    """

    parameter: str | None
    transposed: bool = False
    norm: str | None = None
    is_bias: bool = False

    def value(self, module: nn.Module) -> Tensor:
        """The weight that the network's parameters make now.

        With a folded norm (Jacob et al., "Quantization and Training of Neural Networks", 2018, section
        3.2), where s = gamma / sqrt(variance + epsilon), it is `weight * s` or `(bias - mean) * s + beta`.
        """
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
            value = value * scale.view([-1] + [1] * (value.ndim - 1))
        return value.t() if self.transposed else value


def randomized(module: nn.Module) -> nn.Module:
    """A copy whose parameters and norm statistics are random in [0.5, 1.5), pruned weights included."""
    probe = copy.deepcopy(module)
    with deterministic(0, "weight sources") as generator, torch.no_grad():
        for value in _candidates(probe).values():
            value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
    return probe


def find_sources(model: onnx.ModelProto, probe: nn.Module) -> dict[str, WeightSource]:
    """Match the weights of `probe`'s graph.

    Args:
        model: the export of `probe`.
        probe: what `randomized` made.

    Returns:
        Name of a weight -> its source. Weights that match nothing are constants, or are made of parameters
        in a way that is not known here.
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
    """A copy of the graph with the weights that `module` makes."""
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
    """What a weight can be: a parameter, as it is, transposed, or with a norm; its namesake first."""
    sized = [key for key, value in tensors.items() if value.numel() == weight.numel()]
    for key in sorted(sized, key=lambda key: key != name):
        yield WeightSource(key)
        if tensors[key].ndim == 2:
            yield WeightSource(key, transposed=True)
    biases = [key for key in (None, name) if key is None or key in tensors]
    for norm, channels in norms.items():
        if weight.ndim == 1 and channels == len(weight):
            yield from (WeightSource(key, norm=norm, is_bias=True) for key in biases)
        elif weight.ndim > 1 and name in tensors and channels == len(tensors[name]):
            yield WeightSource(name, norm=norm)


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
