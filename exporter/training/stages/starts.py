"""Starting points of a training: random weights, a new head, no frozen modules."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import cast

from torch import nn

from exporter.errors import StageError
from exporter.networks.network import Network, deterministic
from exporter.networks.rebuild import rebuild
from exporter.recipes import FineTuneConfig
from exporter.training.loop import check_modules
from exporter.training.stages.base import Context


def reset_head(module: nn.Module, name: str, context: Context) -> None:
    """Initialise a module and all its submodules again with random weights.

    Raises:
        StageError: the module does not exist, or nothing in it can be initialised.
    """
    check_modules(module, (name,), f"{context.name}.head")
    head = module.get_submodule(name)
    resets = [
        cast("Callable[[], None]", child.reset_parameters)
        for child in head.modules()
        if hasattr(child, "reset_parameters")
    ]
    if not resets:
        raise StageError(
            f"{context.name}.head",
            f"nothing in {name!r} can be initialised again: no module in it has reset_parameters",
            "choose a layer with weights, for example the last nn.Linear",
        )
    with deterministic(context.seed, f"{context.name}.head"):
        for reset in resets:
            reset()


def random_network(network: Network, name: str, context: Context) -> Network:
    """The same network with the same plan and masks, and with random weights that depend on `name`."""
    with deterministic(context.seed, name):
        module = context.fresh_module()
    random = Network(module if network.plan is None else rebuild(module, network.plan), dict(network.masks))
    random.apply_masks()
    return random


def prepared(network: Network, config: FineTuneConfig, name: str, context: Context) -> Network:
    """A copy of the network, with a new head if the stage sets `head`."""
    module: nn.Module = copy.deepcopy(network.module)
    if config.head is not None:
        reset_head(module, config.head, replace(context, name=name))
    return Network(module, dict(network.masks))


def unfrozen(config: FineTuneConfig) -> FineTuneConfig:
    """The same training for random weights, without the settings that protect pretrained weights."""
    return config.model_copy(
        update={
            "freeze": (),
            "unfreeze_epoch": None,
            "unfreeze_every": None,
            "probe_epochs": 0,
            "layer_decay": 1.0,
            "norm_statistics": "batch" if config.batch_size > 1 else "frozen",
        }
    )
