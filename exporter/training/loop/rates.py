"""Learning rates by layer depth and by training step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypedDict

from torch import nn

from exporter.recipes import Training


class Group(TypedDict):
    """One group of the optimizer; `peak` is the highest learning rate that its schedule reaches."""

    params: list[nn.Parameter]
    weight_decay: float
    lr: float
    peak: float


def parameter_groups(
    module: nn.Module, config: Training, others: Sequence[nn.Parameter] = ()
) -> list[Group]:
    """Groups for the optimizer: by weight decay, and by depth if `layer_decay` is below 1.

    Weight decay applies to weights, but not to biases and the scales of norms, which have one dimension.
    With `layer_decay` d, the layer that is k layers before the last has d^k times the learning rate (Howard
    & Ruder, "Universal Language Model Fine-tuning", 2018, use 1 / 2.6; Clark et al., "ELECTRA", 2020, 0.8).

    Args:
        module: the network.
        config: training settings.
        others: parameters outside the network, for example the parameters of a loss; they have the full
            learning rate.
    """
    depths = layer_depths(module) if config.layer_decay < 1 else {}
    parameters = [(depths.get(name, 0), p) for name, p in module.named_parameters()]
    parameters += [(0, p) for p in others]
    groups: list[Group] = []
    for depth in sorted({depth for depth, _ in parameters}):
        peak = config.learning_rate * config.layer_decay**depth
        members = [p for d, p in parameters if d == depth]
        for chosen, decay in (
            ([p for p in members if p.ndim > 1], config.weight_decay),
            ([p for p in members if p.ndim <= 1], 0.0),
        ):
            groups.append({"params": chosen, "weight_decay": decay, "lr": peak, "peak": peak})
    return groups


def layer_depths(module: nn.Module) -> dict[str, int]:
    """Parameter name -> number of layers between its layer and the end; the last layer has 0.

    The layers are the network's children in the order of their definition. Lists, `Sequential`s, modules
    with a single child and a network's only child are replaced by their own children. A norm belongs to the
    layer before it. Parameters that a replaced module holds directly, for example position embeddings,
    belong to its first layer. Parameters that a network with a single child holds directly have no layer
    and are not listed.
    """
    layers: list[list[str]] = []
    for parameters in _layers(module, "", outermost=True):
        names = list(parameters)
        if layers and all(p.ndim <= 1 for p in parameters.values()):
            layers[-1] += names
        else:
            layers.append(names)
    return {name: len(layers) - 1 - index for index, names in enumerate(layers) for name in names}


def _layers(module: nn.Module, prefix: str, *, outermost: bool) -> list[dict[str, nn.Parameter]]:
    """The parameters of each layer in a module, by name.

    `outermost` is True while the module and all its parents are only children.
    """
    found: list[dict[str, nn.Parameter]] = []
    children = list(module.named_children())
    for name, child in children:
        path = f"{prefix}.{name}" if prefix else name
        inner, only = len(list(child.children())), outermost and len(children) == 1
        if inner and (inner == 1 or only or isinstance(child, nn.Sequential | nn.ModuleList)):
            found += _layers(child, path, outermost=only)
        elif parameters := dict(child.named_parameters(prefix=path)):
            found.append(parameters)
    own = dict(module.named_parameters(prefix=prefix, recurse=False))
    if found and not (outermost and len(children) == 1):
        found[0] = own | found[0]
    return found


def schedule(config: Training, step: int, steps_per_epoch: int) -> float:
    """Factor on the peak learning rates at a training step: a warmup, then half a cosine.

    With `probe_epochs`, the schedule runs twice: for the probe, then for the remaining epochs.
    """
    probe = config.probe_epochs * steps_per_epoch
    total = config.epochs * steps_per_epoch
    start, end = (0, probe) if step < probe else (probe, total)
    warmup = max(1, round(config.warmup * (end - start)))
    return warmup_cosine(step - start, warmup, end - start)


def warmup_cosine(step: int, warmup: int, steps: int) -> float:
    """Factor on the peak learning rate at a training step, counted from 0.

    It rises linearly, then falls to zero along half a cosine (Loshchilov & Hutter, "SGDR", 2017, without
    restarts).
    """
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
