"""Pretraining: fit the network to source data before it meets its own."""

from __future__ import annotations

from exporter.data import Splits
from exporter.network import Network, accuracy
from exporter.recipe import PretrainConfig
from exporter.stages.base import Context, Metrics
from exporter.stages.finetune import cross_entropy
from exporter.training import check_classes, fit


def pretrain(
    network: Network, config: PretrainConfig, data: Splits, context: Context
) -> tuple[Network, Metrics]:
    """Train on the stage's own `data` table; the recipe's data are not looked at."""
    del data
    source = context.load_data(config.data, f"{context.name}.data")
    check_classes(network.module, source, context.name)
    fitted = fit(
        network,
        source,
        config,
        cross_entropy(),
        seed=context.seed,
        name=context.name,
        progress=context.progress,
    )
    return network, {"source_accuracy": accuracy(network.module, source.evaluation), **fitted.as_json()}
