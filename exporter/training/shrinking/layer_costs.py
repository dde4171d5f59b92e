"""The cost of each layer of a network as a function of its channel counts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.utils.flop_counter import FlopCounterMode

from exporter.networks.layer_kinds import Convolution
from exporter.networks.module_calls import ModuleCall, observe_calls
from exporter.networks.network import call, matches
from exporter.training.shrinking.groups import Group


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """The sizes of one convolution or matrix product on one sample.

    Attributes:
        inputs, outputs: numbers of channels.
        groups: number of groups of a convolution; 0 if it is depthwise, for every width.
        size, out_size: rows and columns of the input and output pictures; for a linear layer, the number of
            rows.
        window, stride, dilation: kernel size, stride and dilation of a convolution; empty for a linear
            layer.
    """

    inputs: int
    outputs: int
    groups: int
    size: tuple[int, ...]
    out_size: tuple[int, ...]
    window: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()

    @property
    def depthwise(self) -> bool:
        """Whether each output channel is computed from one input channel only."""
        return self.groups == 0

    @property
    def group_count(self) -> int:
        """Number of groups, the attribute `group` in ONNX."""
        return self.groups or self.inputs

    @property
    def weights(self) -> int:
        """Number of weights, without the bias."""
        return self.outputs * self.inputs // self.group_count * math.prod(self.window)

    @property
    def macs(self) -> int:
        """Number of multiply-adds."""
        return math.prod(self.out_size) * self.weights

    def with_channels(self, inputs: int, outputs: int) -> Kernel:
        """The same kernel with other channel counts."""
        return replace(self, inputs=outputs if self.depthwise else inputs, outputs=outputs)


@dataclass(frozen=True)
class Layer:
    """A layer and the groups that determine its width.

    Attributes:
        name: name of the module.
        kernel: sizes of the layer at full width.
        inputs, outputs: group name -> number of channels that this side loses with each unit of the group.
    """

    name: str
    kernel: Kernel
    inputs: Mapping[str, int]
    outputs: Mapping[str, int]


@dataclass(frozen=True)
class State:
    """One possible network.

    Attributes:
        kept: group name -> number of units kept; groups that are not listed keep all units.
        dropped: names of the dropped blocks.
    """

    kept: Mapping[str, int]
    dropped: frozenset[str] = frozenset()


def find_layers(module: nn.Module, inputs: Mapping[str, Tensor], groups: tuple[Group, ...]) -> list[Layer]:
    """The layers that `forward` runs, one entry for each call, in order, with their groups."""
    calls: list[tuple[str, Kernel]] = []

    def observe(made: ModuleCall) -> None:
        if isinstance(made.module, (Convolution, nn.Linear)):
            (given, *_), output = (*made.args, *made.kwargs.values()), made.output
            assert isinstance(given, Tensor)
            assert isinstance(output, Tensor)
            calls.append((made.name, _kernel(made.module, given, output)))

    observe_calls(module, inputs, observe)
    sides: dict[str, dict[str, dict[str, int]]] = {n: {"inputs": {}, "outputs": {}} for n, _ in calls}
    for group in groups:
        for member in group.members:
            if member.name in sides and isinstance(member.axis, str):
                side = sides[member.name][member.axis]
                side[group.name] = side.get(group.name, 0) + len(set(member.positions)) // len(group.units)
    return [Layer(name, kernel, **sides[name]) for name, kernel in calls]


def each_once(layers: Sequence[Layer]) -> list[Layer]:
    """Each layer once: its weights exist once, even if it is called several times."""
    return list({layer.name: layer for layer in reversed(layers)}.values())[::-1]


class CostModel:
    """The cost of a network in any state, as a sum over its layers.

    Args:
        layers: layers of the network.
        groups: groups that can be narrowed.
        price: returns the cost of one kernel.
        constant: cost added for every remaining layer, for the work between the kernels.
    """

    def __init__(
        self,
        layers: list[Layer],
        groups: tuple[Group, ...],
        price: Callable[[Kernel], float],
        constant: float = 0.0,
    ) -> None:
        self._layers, self._price, self._constant = layers, price, constant
        self._units = {group.name: len(group.units) for group in groups}
        self._known: dict[Kernel, float] = {}

    def __call__(self, state: State) -> float:
        """The cost of the whole network."""
        left = [layer for layer in self._layers if not matches(layer.name, tuple(state.dropped))]
        return sum(self._of(layer, state) for layer in left) + self._constant * len(left)

    def _of(self, layer: Layer, state: State) -> float:
        kernel = layer.kernel
        inputs = kernel.inputs - self._lost(layer.inputs, state)
        outputs = kernel.outputs - self._lost(layer.outputs, state)
        narrowed = kernel.with_channels(inputs, outputs)
        if narrowed not in self._known:
            self._known[narrowed] = self._price(narrowed)
        return self._known[narrowed]

    def _lost(self, side: Mapping[str, int], state: State) -> int:
        return sum(
            (self._units[name] - state.kept.get(name, self._units[name])) * each
            for name, each in side.items()
        )


def count_macs(module: nn.Module, inputs: Mapping[str, Tensor]) -> int:
    """Multiply-adds of all convolutions and linear layers that run, for one sample.

    Every call counts. Layers that torch does not register, for example those in plain lists, count too.
    """
    named = set(module.modules())
    hidden: list[int] = []

    def look(child: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(child, (Convolution, nn.Linear)) and child not in named:
            hidden.append(_kernel(child, args[0], output).macs)

    handle = register_module_forward_hook(look)
    try:
        seen = find_layers(module, inputs, ())
    finally:
        handle.remove()
    return sum(layer.kernel.macs for layer in seen) + sum(hidden)


def executed_flops(module: nn.Module, inputs: Mapping[str, Tensor]) -> int:
    """Floating-point operations that torch's `FlopCounterMode` counts, in layers and outside of them."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call(module, inputs)
    return int(counter.get_total_flops())


def count_parameters(module: nn.Module) -> int:
    """Number of parameters; shared ones count once."""
    return sum(parameter.numel() for parameter in module.parameters())


def _kernel(layer: Convolution | nn.Linear, given: Tensor, output: Tensor) -> Kernel:
    if isinstance(layer, nn.Linear):
        rows = math.prod(given.shape[1:-1])
        return Kernel(
            inputs=layer.in_features, outputs=layer.out_features, groups=1, size=(rows,), out_size=(rows,)
        )
    if layer.transposed:  # the same work as the convolution from its output back to its input
        given, output = output, given
    depthwise = layer.groups == layer.in_channels == layer.out_channels > 1
    return Kernel(
        inputs=given.shape[1],
        outputs=output.shape[1],
        groups=0 if depthwise else layer.groups,
        size=tuple(given.shape[2:]),
        out_size=tuple(output.shape[2:]),
        window=tuple(layer.kernel_size),
        stride=tuple(layer.stride),
        dilation=tuple(layer.dilation),
    )
