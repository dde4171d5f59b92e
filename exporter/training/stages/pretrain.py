"""Pretraining: train the network on source data before the recipe's own data."""

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
    """Train on the stage's own `data` table; the recipe's data are not used.

    If the source data have more classes than the network, a larger layer replaces the last layer during the
    stage. After the stage, the last layer is put back with random weights for the stage that fine-tunes it.
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
    """Replace a last linear layer by one with enough outputs for `classes` while the context is open.

    Yields the name of the layer, or None if nothing is replaced: the last layer is not an `nn.Linear`, has
    enough outputs, or has a mask.
    """
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
