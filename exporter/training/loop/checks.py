"""What must be true of network and data before anything is trained."""

from __future__ import annotations

import numpy as np
from torch import nn

from bench.core.arrays import Array
from exporter.errors import StageError
from exporter.networks.network import predict
from exporter.sources.splits import UNLABELLED, Split, Splits, stratified_indices

# A class with so many samples or fewer, or with so small a share of the largest class, gets a line.
FEW_SAMPLES = 5
SMALL_SHARE = 0.1


def check_modules(module: nn.Module, names: tuple[str, ...], place: str) -> None:
    """Make sure that a network has the modules that a recipe names.

    Raises:
        StageError: with the first that it lacks, and some that it has.
    """
    known = [name for name, _ in module.named_modules() if name]
    for name in names:
        if name not in known:
            some = ", ".join(known[:12]) + (" …" if len(known) > 12 else "")
            raise StageError(place, f"the network has no module {name!r}", f"it has: {some}")


def hold_out(split: Split, share: float, seed: int, place: str) -> tuple[Split, Split]:
    """Cut a stratified validation share from training data; samples without a label stay in training.

    Raises:
        StageError: the data are too few to leave samples on both sides.
    """
    labelled = np.flatnonzero(split.labels != UNLABELLED)
    size = max(1, round(len(labelled) * share))
    if len(labelled) - size < 1:
        raise StageError(
            place, f"{len(labelled)} training samples cannot spare a validation share", "give more data"
        )
    sizes = {"validation": size, "training": len(labelled) - size}
    drawn = stratified_indices(split.labels[labelled], sizes, seed, place)
    rest = np.flatnonzero(split.labels == UNLABELLED)
    training = np.concatenate([labelled[drawn["training"]], rest])
    return split.take(training), split.take(labelled[drawn["validation"]])


def check_classes(module: nn.Module, data: Splits, place: str) -> int:
    """The number of classes that a network tells apart.

    Raises:
        StageError: its output is no [N, classes], or a label lies beyond.
    """
    probe = data.train.first(2)
    try:
        outputs = predict(module, probe)
    except Exception as error:  # a network may raise anything when fed the wrong shape
        shapes = {name: list(array.shape[1:]) for name, array in probe.inputs.items()}
        raise StageError(
            place, f"the network does not take the data {shapes} ({error})", "make model and data fit"
        ) from error
    if outputs.ndim != 2:
        raise StageError(
            place, f"the network gives {list(outputs.shape)}", "return class scores of shape [N, classes]"
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
    """What a person should know of training data before trusting what is learnt from them.

    Args:
        labels: of all training samples, [N].
        classes: that the network tells apart.
        validation: share of the samples that will choose the best epoch.
        weighted: whether rare classes count as much as frequent ones already.

    Returns:
        Lines: classes without samples, with few, with far fewer than the largest; a validation share of
        fewer samples than classes.
    """
    counts = np.bincount(labels, minlength=classes)
    notes = []
    if len(empty := np.flatnonzero(counts == 0)):
        notes.append(f"{_classes(empty)} no training sample: nothing can be learnt of that")
    largest = int(counts.max())
    small = np.flatnonzero((counts > 0) & ((counts <= FEW_SAMPLES) | (counts < SMALL_SHARE * largest)))
    if len(small):
        uneven = counts[small].min() < largest
        advice = ', or set class_weights = "balanced"' if uneven and not weighted else ""
        notes.append(
            f"{_classes(small)} few training samples ({_span(counts[small])}, the largest class has "
            f"{largest}): give more{advice}"
        )
    held_out = max(1, round(len(labels) * validation))
    if held_out < classes:
        notes.append(
            f"{held_out} validation samples for {classes} classes say little of which epoch is best: "
            "raise validation or give more data"
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
