"""Seeing what a network's parts are given and give."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from exporter.networks.network import call

# (name of the module, the module, positional arguments, named arguments, output)
Look = Callable[[str, nn.Module, tuple[Any, ...], dict[str, Any], Any], None]


def watch(module: nn.Module, inputs: Mapping[str, Tensor], look: Look) -> None:
    """Run a network once, without gradients, and show `look` every call of a submodule."""

    def hook(name: str) -> Callable[..., None]:
        return lambda child, args, kwargs, output: look(name, child, args, kwargs, output)

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
    """Whether a module has parameters of its own."""
    return any(True for _ in module.parameters(recurse=False))
