"""Pretraining: fit the network to source data before it meets its own."""

from __future__ import annotations

from exporter.data import Splits
from exporter.network import Network, accuracy
from exporter.recipe import PretrainConfig
from exporter.stages.base import Context, Metrics
from exporter.stages.finetune import cross_entropy
from exporter.training import check_classes, class_notes


def pretrain(
    network: Network, config: PretrainConfig, data: Splits, context: Context
) -> tuple[Network, Metrics]:
    """Train on the stage's own `data` table; the recipe's data are not looked at."""
    del data
    source = context.load_data(config.data, f"{context.name}.data")
    classes = check_classes(network.module, source, context.name)
    warnings = context.warned(class_notes(source.train.labels, classes, config.validation))
    fitted = context.fit(network, source, config, cross_entropy())
    return network, {
        **warnings,
        "source_accuracy": accuracy(network.module, source.evaluation),
        **fitted.as_json(),
    }
