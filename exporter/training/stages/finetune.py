"""Fine-tuning: train a pretrained network on the recipe's data."""

from __future__ import annotations

from exporter.networks.network import Network, accuracy
from exporter.recipes import FineTuneConfig
from exporter.results import FewShotPoint, FineTuneResult, FromScratch
from exporter.sources.splits import Splits
from exporter.training.loop import Loss, check_classes
from exporter.training.stages.base import Context
from exporter.training.stages.few_shot import few_shot_curve
from exporter.training.stages.labelled_loss import cross_entropy, labelled_loss
from exporter.training.stages.starts import random_network, reset_head, unfrozen


def finetune(
    network: Network, config: FineTuneConfig, data: Splits, context: Context
) -> tuple[Network, FineTuneResult]:
    """Train on `data`; `from_scratch` and `few_shot` also train random networks for comparison."""
    classes = check_classes(network.module, data, context.name)
    warnings, loss = labelled_loss(config, data, classes, context)
    few_shot: tuple[FewShotPoint, ...] = ()
    if config.few_shot is not None:
        # All classes have the same number of samples here, so class weights are not needed.
        even = cross_entropy(config.label_smoothing)
        few_shot = few_shot_curve(network, config, data, context, few=config.few_shot, loss=even)
    if config.head is not None:
        reset_head(network.module, config.head, context)
    trained = context.fit(network, data, config, loss)
    return network, FineTuneResult(
        warnings=warnings,
        evaluation_accuracy=accuracy(network.module, data.evaluation),
        **dict(trained),
        from_scratch=_train_from_scratch(network, config, data, loss, context)
        if config.from_scratch
        else None,
        few_shot=few_shot,
    )


def _train_from_scratch(
    start: Network, config: FineTuneConfig, data: Splits, loss: Loss, context: Context
) -> FromScratch:
    """Train the same network with the same settings and data from random weights, with nothing frozen."""
    name = f"{context.name} from scratch"
    network = random_network(start, name, context)
    trained = context.fit(network, data, unfrozen(config), loss, name=name)
    return FromScratch(evaluation_accuracy=accuracy(network.module, data.evaluation), **dict(trained))
