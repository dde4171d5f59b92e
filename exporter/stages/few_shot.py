"""What pretrained weights buy at several sizes of data: a curve, with intervals over seeds."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
from torch import nn

from exporter.data import Split, Splits
from exporter.errors import StageError
from exporter.network import Network, accuracy, deterministic
from exporter.recipe import FewShotConfig, FineTuneConfig
from exporter.seeds import mean_interval
from exporter.shrinking.rebuild import rebuild
from exporter.stages.base import Context, Metrics
from exporter.training import Loss

ALPHA = 0.025  # each side: an interval of 95 %


def few_shot_curve(
    network: Network,
    config: FineTuneConfig,
    data: Splits,
    context: Context,
    *,
    few: FewShotConfig,
    loss: Loss,
) -> list[Metrics]:
    """Train on a few images of each class, from the weights at hand and from random ones.

    For each size and seed, the same images, batches, epochs and loss serve both trainings; the seed draws
    the images, the random weights, a new head and the order. Both are judged on the whole evaluation split.

    Args:
        network: as it comes to the stage; it stays as it is.
        config: of the stage; the random network freezes nothing.
        data: the recipe's.
        context: of the stage.
        few: sizes and seeds.
        loss: of the stage.

    Returns:
        A line for each size: accuracies by seed, and the mean gain in them with its bounds.

    Raises:
        StageError: a class has fewer images than are asked for.
    """
    lines: list[Metrics] = []
    few_of_each(data.train, max(few.images), context.seed, context.name)  # refused before hours of others
    for images in few.images:
        found: dict[str, list[float]] = {"transfer": [], "from_scratch": []}
        for seed in range(few.seeds):
            name = f"{context.name}, {images} a class, seed {seed}"
            chosen = replace(data, train=few_of_each(data.train, images, context.seed + seed, context.name))
            starts = {
                "transfer": (prepared(network, config, name, context), config),
                "from_scratch": (random_network(network, name, context), unfrozen(config)),
            }
            for kind, (start, training) in starts.items():
                short = training.model_copy(update={"epochs": few.epochs or config.epochs})
                context.fit(start, chosen, short, loss, name=f"{name}, {kind.replace('_', ' ')}")
                found[kind].append(accuracy(start.module, data.evaluation))
        gains = [a - b for a, b in zip(found["transfer"], found["from_scratch"], strict=True)]
        gain = mean_interval(gains, ALPHA)
        lines.append({"images": images, **found, "gain": dict(gain.__dict__)})
    return lines


def few_of_each(split: Split, images: int, seed: int, place: str) -> Split:
    """So many samples of each class that the split holds, drawn by a seed.

    Raises:
        StageError: a class has fewer.
    """
    generator = np.random.default_rng(seed)
    chosen = []
    for label in np.unique(split.labels):
        members = np.flatnonzero(split.labels == label)
        if len(members) < images:
            raise StageError(
                f"{place}.few_shot.images",
                f"class {label} has {len(members)} training samples, {images} are asked for",
                "ask for fewer",
            )
        chosen.append(generator.permutation(members)[:images])
    return split.take(np.sort(np.concatenate(chosen)))


def random_network(network: Network, name: str, context: Context) -> Network:
    """The same network, as narrow and as sparse, with random weights that hang on `name`."""
    with deterministic(context.seed, name):
        module = context.fresh_module()
    random = Network(module if network.plan is None else rebuild(module, network.plan), dict(network.masks))
    random.apply_masks()
    return random


def prepared(network: Network, config: FineTuneConfig, name: str, context: Context) -> Network:
    """A copy of the network, with a new head if the stage gives it one."""
    from exporter.stages.finetune import reset_head

    module: nn.Module = copy.deepcopy(network.module)
    if config.head is not None:
        reset_head(module, config.head, replace(context, name=name))
    return Network(module, dict(network.masks))


def unfrozen(config: FineTuneConfig) -> FineTuneConfig:
    """The same training for random weights: there is nothing in them to keep or to spare."""
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
