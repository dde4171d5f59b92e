"""Few-shot curve: the gain from pretrained weights at several sizes of data, with intervals over seeds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from exporter.errors import StageError
from exporter.networks.network import Network, accuracy
from exporter.recipes import FewShotConfig, FineTuneConfig
from exporter.results import FewShotPoint
from exporter.sources.splits import Split, Splits
from exporter.training.loop import Loss
from exporter.training.stages.base import Context
from exporter.training.stages.seed_interval import mean_interval
from exporter.training.stages.starts import prepared, random_network, unfrozen

ALPHA = 0.025  # each side: an interval of 95 %


def few_shot_curve(
    network: Network,
    config: FineTuneConfig,
    data: Splits,
    context: Context,
    *,
    few: FewShotConfig,
    loss: Loss,
) -> tuple[FewShotPoint, ...]:
    """Train on a few images of each class, from the network's weights and from random weights.

    For each size and seed, both trainings use the same images, batches, epochs and loss. The seed
    determines the images, the random weights, a new head and the order of samples. Both networks are
    evaluated on the whole evaluation split.

    Args:
        network: the network that the stage received; it is not changed.
        config: configuration of the stage; the training of the random network freezes nothing.
        data: data of the recipe.
        context: context of the stage.
        few: numbers of images, and number of seeds.
        loss: loss of the stage.

    Returns:
        One point for each size: the accuracies by seed, and the mean gain in accuracy with its bounds.

    Raises:
        StageError: a class has fewer images than the configuration requests.
    """
    points = []
    # Check the largest size first: an error after hours of training would waste them.
    few_of_each(data.train, max(few.images), context.seed, context.name)
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
        points.append(
            FewShotPoint(
                images=images,
                transfer=tuple(found["transfer"]),
                from_scratch=tuple(found["from_scratch"]),
                gain=mean_interval(gains, ALPHA),
            )
        )
    return tuple(points)


def few_of_each(split: Split, images: int, seed: int, place: str) -> Split:
    """Draw `images` random samples of each class in the split.

    Raises:
        StageError: a class has fewer samples.
    """
    generator = np.random.default_rng(seed)
    chosen = []
    for label in np.unique(split.labels):
        members = np.flatnonzero(split.labels == label)
        if len(members) < images:
            raise StageError(
                f"{place}.few_shot.images",
                f"class {label} has {len(members)} training samples, but {images} are requested",
                f"write at most {len(members)}",
            )
        chosen.append(generator.permutation(members)[:images])
    return split.take(np.sort(np.concatenate(chosen)))
