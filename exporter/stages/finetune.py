"""Fine-tuning: fit a pretrained network to the data at hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import cast

from torch import Tensor, nn

from exporter.data import Splits
from exporter.errors import StageError
from exporter.network import Network, accuracy, deterministic
from exporter.recipe import FineTuneConfig
from exporter.stages.base import Context, Metrics
from exporter.training import Loss, check_classes, check_modules, fit


def finetune(
    network: Network, config: FineTuneConfig, data: Splits, context: Context
) -> tuple[Network, Metrics]:
    """Train on `data`; with `from_scratch`, train a second, random network beside it to compare."""
    check_classes(network.module, data, context.name)
    if config.head is not None:
        reset_head(network.module, config.head, context)
    loss = cross_entropy(config.label_smoothing)
    fitted = fit(
        network,
        data,
        config,
        loss,
        seed=context.seed,
        name=context.name,
        progress=context.progress,
    )
    metrics: Metrics = {
        "evaluation_accuracy": accuracy(network.module, data.evaluation),
        **fitted.as_json(),
    }
    if config.from_scratch:
        metrics["from_scratch"] = _train_from_scratch(config, data, loss, context)
    return network, metrics


def cross_entropy(label_smoothing: float = 0.0) -> Loss:
    """The usual loss of classification, with the labels alone."""
    criterion = nn.CrossEntropyLoss(label_smoothing=label_smoothing)

    def loss(_inputs: Mapping[str, Tensor], outputs: Tensor, labels: Tensor) -> Tensor:
        value: Tensor = criterion(outputs, labels)
        return value

    return loss


def reset_head(module: nn.Module, name: str, context: Context) -> None:
    """Initialise a module anew, and all below it.

    Raises:
        StageError: there is no such module, or nothing in it can be initialised.
    """
    check_modules(module, (name,), f"{context.name}.head")
    head = module.get_submodule(name)
    resets = [
        cast("Callable[[], None]", child.reset_parameters)
        for child in head.modules()
        if hasattr(child, "reset_parameters")
    ]
    if not resets:
        raise StageError(f"{context.name}.head", f"{name!r} has no weights", "name a layer that has")
    with deterministic(context.seed, f"{context.name}.head"):
        for reset in resets:
            reset()


def _train_from_scratch(config: FineTuneConfig, data: Splits, loss: Loss, context: Context) -> Metrics:
    """The same network, budget and data without the pretrained weights, and so nothing frozen."""
    name = f"{context.name} from scratch"
    with deterministic(context.seed, name):
        network = Network(context.fresh_module())
    fitted = fit(network, data, config, loss, seed=context.seed, name=name, progress=context.progress)
    return {"evaluation_accuracy": accuracy(network.module, data.evaluation), **fitted.as_json()}
