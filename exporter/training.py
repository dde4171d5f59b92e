"""Fitting weights: one loop for all stages that train. What differs between them is the loss."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from bench.progress import Progress
from exporter.data import Split, Splits, stratified_indices
from exporter.errors import StageError
from exporter.network import Network, accuracy, call, deterministic, matches
from exporter.recipe import Training

# (inputs of the batch, outputs of the network, labels) -> mean loss
Loss = Callable[[Mapping[str, Tensor], Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Epoch:
    """One line of the training curves."""

    epoch: int
    learning_rate: float
    train_loss: float
    train_accuracy: float
    validation_accuracy: float

    def as_json(self) -> dict[str, float]:
        """For metrics."""
        return dict(self.__dict__)


@dataclass(frozen=True)
class Fitted:
    """What a training left: its curves, and the epoch whose weights were kept."""

    curves: tuple[Epoch, ...]
    best_epoch: int

    def as_json(self) -> dict[str, object]:
        """For metrics."""
        return {
            "curves": [epoch.as_json() for epoch in self.curves],
            "best_epoch": self.best_epoch,
            "validation_accuracy": self.curves[self.best_epoch].validation_accuracy,
        }


def fit(
    network: Network,
    data: Splits,
    config: Training,
    loss: Loss,
    *,
    seed: int,
    name: str,
    progress: Progress,
) -> Fitted:
    """Train a network in place and leave it with the weights of its best epoch.

    AdamW; the learning rate rises linearly over the warmup and falls along half a cosine to zero
    (Loshchilov & Hutter, "SGDR", 2017, without restarts). The best epoch is the one of highest
    accuracy on a stratified share cut from the training data; of equals, the latest.

    Raises:
        StageError: the loss is not a number, there is too little data to hold some out, a frozen
            module does not exist, or nothing is left to learn.
    """
    check_modules(network.module, config.freeze, f"{name}.freeze")
    training, validation = hold_out(data.train, config.validation, seed, name)
    steps_per_epoch = training.count // config.batch_size or 1
    steps = steps_per_epoch * config.epochs
    optimizer = torch.optim.AdamW(
        _parameter_groups(network.module, config.weight_decay), lr=config.learning_rate
    )
    warmup = max(1, round(config.warmup * steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warmup_cosine(step, warmup, steps))
    curves: list[Epoch] = []
    best_state: dict[str, Tensor] = {}
    best = 0
    with deterministic(seed, name) as generator, progress.task(name, steps) as task:
        for epoch in range(config.epochs):
            _set_mode(network.module, frozen_modules(config, epoch))
            if not any(parameter.requires_grad for parameter in network.module.parameters()):
                raise StageError(f"{name}.freeze", f"epoch {epoch} has nothing to learn", "freeze less")
            order = torch.randperm(training.count, generator=generator).numpy()
            losses, hits = [], 0
            rate = float(optimizer.param_groups[0]["lr"])
            for step in range(steps_per_epoch):
                batch = training.take(order[step * config.batch_size : (step + 1) * config.batch_size])
                inputs = _tensors(batch)
                if data.augment is not None:
                    inputs = data.augment(inputs, generator)
                labels = torch.from_numpy(batch.labels.astype(np.int64))
                outputs = call(network.module, inputs)
                value = loss(inputs, outputs, labels)
                if not bool(torch.isfinite(value)):
                    raise StageError(
                        name,
                        f"the loss became {value.item()} at epoch {epoch}, step {step}",
                        "lower learning_rate",
                    )
                optimizer.zero_grad(set_to_none=True)
                value.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
                network.apply_masks()
                losses.append(value.item())
                hits += int((outputs.argmax(dim=1) == labels).sum())
                task.advance(note=f"loss {losses[-1]:.3f}")
            seen = min(steps_per_epoch * config.batch_size, training.count)
            curves.append(
                Epoch(
                    epoch, rate, float(np.mean(losses)), hits / seen, accuracy(network.module, validation)
                )
            )
            if curves[-1].validation_accuracy >= curves[best].validation_accuracy:
                best, best_state = epoch, copy.deepcopy(network.module.state_dict())
    network.module.load_state_dict(best_state)
    network.module.requires_grad_(True)
    network.module.eval()
    return Fitted(tuple(curves), best)


def frozen_modules(config: Training, epoch: int) -> tuple[str, ...]:
    """The modules that are frozen in an epoch."""
    over = config.unfreeze_epoch is not None and epoch >= config.unfreeze_epoch
    return () if over else config.freeze


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


def warmup_cosine(step: int, warmup: int, steps: int) -> float:
    """Factor on the peak learning rate at a step, counted from 0."""
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def hold_out(split: Split, share: float, seed: int, place: str) -> tuple[Split, Split]:
    """Cut a stratified validation share from training data.

    Raises:
        StageError: the data are too few to leave samples on both sides.
    """
    size = max(1, round(split.count * share))
    if split.count - size < 1:
        raise StageError(
            place, f"{split.count} training samples cannot spare a validation share", "give more data"
        )
    sizes = {"validation": size, "training": split.count - size}
    drawn = stratified_indices(split.labels, sizes, seed, place)
    return split.take(drawn["training"]), split.take(drawn["validation"])


def check_classes(module: nn.Module, data: Splits, place: str) -> int:
    """The number of classes that a network tells apart.

    Raises:
        StageError: its output is no [N, classes], or a label lies beyond.
    """
    from exporter.network import predict

    probe = data.train.take(np.arange(min(2, data.train.count)))
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


def _tensors(batch: Split) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in batch.inputs.items()}


def _parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Weights decay; biases and the scales of norms, which have one dimension, do not."""
    parameters = list(module.parameters())
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def _set_mode(module: nn.Module, frozen: tuple[str, ...]) -> None:
    """Training mode, but for frozen modules: no gradients, and norms that keep their statistics."""
    module.train()
    for name, child in module.named_modules():
        if matches(name, frozen):
            child.eval()
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(not matches(name, frozen))
