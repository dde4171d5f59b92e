"""Checks of the network and the data before training."""

from __future__ import annotations

import numpy as np
from torch import nn

from bench.core.arrays import Array
from exporter.errors import StageError
from exporter.networks.network import predict
from exporter.sources.splits import UNLABELLED, Split, Splits, stratified_indices

# A class gets a warning with at most FEW_SAMPLES samples, or less than SMALL_SHARE of the largest class.
FEW_SAMPLES = 5
SMALL_SHARE = 0.1


def check_modules(module: nn.Module, names: tuple[str, ...], place: str) -> None:
    """Check that a network has the modules that a recipe names.

    Raises:
        StageError: a module does not exist; the message lists some modules that exist.
    """
    known = [name for name, _ in module.named_modules() if name]
    for name in names:
        if name not in known:
            some = ", ".join(known[:12]) + (" …" if len(known) > 12 else "")
            raise StageError(place, f"the network has no module {name!r}", f"it has: {some}")


def hold_out(split: Split, share: float, seed: int, place: str) -> tuple[Split, Split]:
    """Split training data into training and validation samples, stratified by class.

    Samples without a label stay in the training part.

    Args:
        split: the training data.
        share: fraction of the labelled samples for validation.
        seed: seed of the random choice.
        place: the stage or key that error messages name.

    Raises:
        StageError: there are too few samples for both parts.
    """
    labelled = np.flatnonzero(split.labels != UNLABELLED)
    size = max(1, round(len(labelled) * share))
    if len(labelled) - size < 1:
        raise StageError(
            place,
            f"{len(labelled)} labelled training samples are too few to hold out {size} for validation",
            "provide more data, or lower validation",
        )
    sizes = {"validation": size, "training": len(labelled) - size}
    drawn = stratified_indices(split.labels[labelled], sizes, seed, place)
    rest = np.flatnonzero(split.labels == UNLABELLED)
    training = np.concatenate([labelled[drawn["training"]], rest])
    return split.take(training), split.take(labelled[drawn["validation"]])


def check_classes(module: nn.Module, data: Splits, place: str) -> int:
    """The number of classes in a network's output.

    Raises:
        StageError: the network does not run on the data, its output does not have the shape [N, classes],
            or a label is out of range.
    """
    probe = data.train.first(2)
    try:
        outputs = predict(module, probe)
    except Exception as error:  # a network may raise any exception for inputs of a wrong shape
        shapes = {name: list(array.shape[1:]) for name, array in probe.inputs.items()}
        raise StageError(
            place,
            f"the network does not run on inputs of shapes {shapes} ({error})",
            "change the model or the data so that the shapes match",
        ) from error
    if outputs.ndim != 2:
        raise StageError(
            place,
            f"the network's output has shape {list(outputs.shape)}",
            "return class scores of shape [N, classes]",
        )
    classes = int(outputs.shape[1])
    for name, split in (("train", data.train), ("evaluation", data.evaluation)):
        if (largest := int(split.labels.max())) >= classes:
            raise StageError(
                place,
                f"label {largest} in {name} is out of range for the network's {classes} classes",
                "raise the number of classes in model.args, or renumber the labels",
            )
    return classes


def class_notes(labels: Array, classes: int, validation: float, *, weighted: bool = False) -> list[str]:
    """Warnings about training data from which a network cannot learn well.

    Args:
        labels: labels of all training samples, [N].
        classes: number of classes of the network.
        validation: fraction of the samples that choose the best epoch.
        weighted: whether class weights already balance rare and frequent classes.

    Returns:
        One line each for classes without samples, for classes with few samples or far fewer than the
        largest class, and for a validation part with fewer samples than classes.
    """
    counts = np.bincount(labels, minlength=classes)
    notes = []
    if len(empty := np.flatnonzero(counts == 0)):
        notes.append(f"{_classes(empty)} no training samples: add some, or lower the number of classes")
    largest = int(counts.max())
    small = np.flatnonzero((counts > 0) & ((counts <= FEW_SAMPLES) | (counts < SMALL_SHARE * largest)))
    if len(small):
        uneven = counts[small].min() < largest
        advice = ', or set class_weights = "balanced"' if uneven and not weighted else ""
        notes.append(
            f"{_classes(small)} few training samples ({_span(counts[small])}, the largest class has "
            f"{largest}): add more{advice}"
        )
    held_out = max(1, round(len(labels) * validation))
    if held_out < classes:
        notes.append(
            f"{held_out} validation samples for {classes} classes are too few to choose the best epoch: "
            "raise validation or add data"
        )
    return notes


def _classes(indices: Array) -> str:
    shown = ", ".join(str(index) for index in indices[:8])
    return (
        f"classes {shown}{' …' if len(indices) > 8 else ''} have"
        if len(indices) > 1
        else f"class {shown} has"
    )


def _span(counts: Array) -> str:
    low, high = int(counts.min()), int(counts.max())
    return str(low) if low == high else f"{low} to {high}"
