"""Pretraining: fit the network to source data before it meets its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from exporter.networks.network import Network, accuracy, deterministic
from exporter.recipes import PretrainConfig
from exporter.results import PretrainResult
from exporter.sources.splits import Splits
from exporter.training.loop import check_classes
from exporter.training.loop.freezing import last_layer
from exporter.training.stages.base import Context
from exporter.training.stages.labelled_loss import labelled_loss
from exporter.training.stages.starts import reset_head


def pretrain(
    network: Network, config: PretrainConfig, data: Splits, context: Context
) -> tuple[Network, PretrainResult]:
    """Train on the stage's own `data` table; the recipe's data are not looked at.

    Source data may have more classes than the network: its last layer then makes way for one that knows
    them all, and comes back with random weights for the stage that fine-tunes it.
    """
    del data
    source = context.load.data(config.data, f"{context.name}.data")
    labels = max(int(split.labels.max()) for split in (source.train, source.evaluation)) + 1
    with _room_for(labels, network, context) as new_head:
        classes = check_classes(network.module, source, context.name)
        warnings, loss = labelled_loss(config, source, classes, context)
        trained = context.fit(network, source, config, loss)
        result = PretrainResult(
            warnings=warnings,
            source_classes=classes,
            source_accuracy=accuracy(network.module, source.evaluation),
            new_head=new_head,
            **dict(trained),
        )
    return network, result


@contextmanager
def _room_for(classes: int, network: Network, context: Context) -> Iterator[str | None]:
    """Let a network whose last layer is linear tell so many classes apart; the name of the layer, if so."""
    name = last_layer(network.module)
    last = network.module.get_submodule(name)
    if (
        not name
        or type(last) is not nn.Linear
        or last.out_features >= classes
        or f"{name}.weight" in network.masks
    ):
        yield None
        return
    parent, _, attribute = name.rpartition(".")
    with deterministic(context.seed, f"{context.name}.head"):
        wide = nn.Linear(last.in_features, classes, bias=last.bias is not None)
    owner = network.module.get_submodule(parent)
    setattr(owner, attribute, wide)
    try:
        yield name
    finally:
        setattr(owner, attribute, last)
        reset_head(network.module, name, context)
