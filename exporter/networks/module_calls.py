"""Observe the calls of a network's submodules, with their arguments and outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from exporter.networks.network import call


@dataclass(frozen=True)
class ModuleCall:
    """One call of a submodule.

    Attributes:
        name: name of the submodule.
        module: the submodule.
        args: positional arguments of the call.
        kwargs: keyword arguments of the call.
        output: the value that the call returned.
    """

    name: str
    module: nn.Module
    args: tuple[object, ...]
    kwargs: Mapping[str, object]
    output: object


def observe_calls(
    module: nn.Module, inputs: Mapping[str, Tensor], observe: Callable[[ModuleCall], None]
) -> None:
    """Run a network once without gradients, and pass every call of a submodule to `observe`."""

    def hook(name: str) -> Callable[..., None]:
        return lambda child, args, kwargs, output: observe(ModuleCall(name, child, args, kwargs, output))

    hooks = [
        child.register_forward_hook(hook(name), with_kwargs=True)
        for name, child in module.named_modules()
        if name
    ]
    try:
        with torch.no_grad():
            call(module, inputs)
    finally:
        for handle in hooks:
            handle.remove()


def has_weights(module: nn.Module) -> bool:
    """Whether a module itself has parameters, not counting its submodules."""
    return any(True for _ in module.parameters(recurse=False))
