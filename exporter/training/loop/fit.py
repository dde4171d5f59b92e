"""The training loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NoReturn

import numpy as np
import torch
from pydantic import JsonValue
from torch import Tensor, nn

from bench.core.progress import Progress, Task
from exporter.errors import StageError
from exporter.networks.memory_layout import laid_out, layout_for
from exporter.networks.network import Network, accuracy, call, deterministic, predict
from exporter.recipes import Training
from exporter.results import Epoch, Trained
from exporter.sources.splits import UNLABELLED, Split, Splits
from exporter.training.loop.average import Average
from exporter.training.loop.checkpoints import Checkpoints, Saved, Values
from exporter.training.loop.checks import check_modules, hold_out
from exporter.training.loop.engine import ONE_CPU, Engine
from exporter.training.loop.freezing import check_norms, last_change, set_learning
from exporter.training.loop.hooks import Hook
from exporter.training.loop.mixup import mixup
from exporter.training.loop.rates import parameter_groups, schedule

if TYPE_CHECKING:
    from exporter.sources.splits import Augment

# (inputs of the batch, outputs of the network, labels) -> mean loss. Labels are int64 [N], or float
# [N, classes] with mixup. A loss that is a module is moved to the device, and its parameters are trained.
Loss = Callable[[Mapping[str, Tensor], Tensor, Tensor], Tensor]


def fit(
    network: Network,
    data: Splits,
    config: Training,
    loss: Loss,
    *,
    seed: int,
    name: str,
    progress: Progress,
    hooks: Sequence[Hook] = (),
    checkpoints: Checkpoints | None = None,
    engine: Engine = ONE_CPU,
) -> Trained:
    """Train a network in place. Afterwards it is on the CPU and has the weights of its best epoch.

    The optimizer is AdamW. `loop.rates` defines the learning rate, and `loop.freezing` the trained
    parameters of each epoch. The best epoch has the highest accuracy on validation samples held out from
    the training data, among the epochs for which all hooks return `settled`; if several are equal, the
    latest.

    Args:
        network: the network to train; its masks are applied after every step.
        data: data with `train` and `augment`; the other splits are not used.
        config: training settings of the recipe.
        loss: loss function of the stage.
        seed: seed of all random numbers, combined with `name`, so that two trainings of a build differ.
        name: name of the training, for messages and checkpoints.
        progress: receives an update for every step.
        hooks: hooks to call between steps, in this order.
        checkpoints: stores the training at intervals, and returns the state of a killed training; None
            stores nothing.
        engine: the hardware.

    Raises:
        StageError: the loss or a weight is not a number, there are too few samples to hold some out, a
            frozen module does not exist, all parameters are frozen, or a batch is too small for a norm.
    """
    check_modules(network.module, config.freeze, f"{name}.freeze")
    training, validation = hold_out(data.train, config.validation, seed, name)
    with deterministic(seed, name, engine.device) as generator:
        run = _Run(
            network=network,
            config=config,
            loss=loss,
            hooks=hooks,
            engine=engine,
            name=name,
            training=training,
            validation=validation,
            augment=data.augment,
            generator=generator,
            checkpoints=checkpoints,
        )
        run.begin(seed)
        if checkpoints is not None and (saved := checkpoints.read(name, _Values)) is not None:
            run.restore(saved)
            progress.say(f"{name}: continues at step {run.step} of {run.steps}")
        with progress.task(name, run.steps) as task:
            task.advance(run.step)
            run.train(task)
        return run.finish()


class _Values(Values):
    """State of a training, apart from tensors; `mixing` is the state of the mixup generator."""

    step: int
    losses: tuple[float, ...]
    hits: int
    labelled: int
    curves: tuple[Epoch, ...]
    best: int | None
    mixing: dict[str, JsonValue]


@dataclass(kw_only=True)
class _Run:
    """One training. `saved` and `restore` list all its state that changes between steps."""

    network: Network
    config: Training
    loss: Loss
    hooks: Sequence[Hook]
    engine: Engine
    name: str
    training: Split
    validation: Split
    augment: Augment | None
    generator: torch.Generator
    checkpoints: Checkpoints | None
    learning: int | None = None  # the epoch for which the trained parameters were last set
    step: int = 0
    order: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    losses: list[float] = field(default_factory=list)
    hits: int = 0
    labelled: int = 0
    curves: list[Epoch] = field(default_factory=list)
    best: int | None = None
    best_state: dict[str, Tensor] = field(default_factory=dict)

    @property
    def steps_per_epoch(self) -> int:
        """Number of whole batches. The leftover samples are skipped; they differ from epoch to epoch."""
        return self.training.count // self.config.batch_size or 1

    @property
    def steps(self) -> int:
        """Number of steps of the whole training."""
        return self.steps_per_epoch * self.config.epochs

    def begin(self, seed: int) -> None:
        """Move everything to its device; create the optimizer, the average and the random generators."""
        if self.training.count < self.engine.world:
            raise StageError(
                self.name,
                f"{self.training.count} training samples are too few for {self.engine.world} processes",
                "lower train.devices or provide more data",
            )
        module, device = self.network.module.to(self.engine.device), self.engine.device
        self.engine.spread([*module.parameters(), *module.buffers()])
        self.loss_parameters: list[nn.Parameter] = []
        if isinstance(self.loss, nn.Module):
            self.loss_parameters = [p for p in self.loss.to(device).parameters() if p.requires_grad]
            self.engine.spread(self.loss_parameters)
        groups = parameter_groups(module, self.config, self.loss_parameters)
        self.optimizer = torch.optim.AdamW(groups, lr=self.config.learning_rate)  # type: ignore[arg-type]
        self.learned = [p for group in groups for p in group["params"]]
        self.average = Average(module, self.config.ema) if self.config.ema else None
        # All processes draw the same order of the samples, but each draws its own augmentation.
        self.draws = self.generator
        if self.engine.world > 1:
            own = self.generator.initial_seed() + 1 + self.engine.rank
            self.draws = torch.Generator().manual_seed(own)
        self.mixing = np.random.default_rng(seed + self.engine.rank)
        first = self.training.first(1)
        self.classes = predict(module, first).shape[-1]
        for hook in self.hooks:
            hook.begin(self.network, self.steps, self.steps_per_epoch)
        inputs = {name: torch.from_numpy(array).to(device) for name, array in first.inputs.items()}
        self.layout = layout_for(module, inputs)

    def train(self, task: Task) -> None:
        """Run all remaining steps."""
        while self.step < self.steps and not self._patience_is_over():
            epoch, index = divmod(self.step, self.steps_per_epoch)
            if index == 0:
                self.order = torch.randperm(self.training.count, generator=self.generator)
                self.losses, self.hits, self.labelled = [], 0, 0
            if self.learning != epoch:
                set_learning(self.network.module, self.config, epoch, self.name)
                self.learning = epoch
            self._do_step(epoch, index)
            task.advance(note=f"loss {self.losses[-1]:.3f}")
            self.step += 1
            if index + 1 == self.steps_per_epoch:
                self._end_epoch(epoch)
            if self.checkpoints is not None and self.engine.rank == 0 and self.checkpoints.due():
                self.checkpoints.write(self.name, self.saved())

    def finish(self) -> Trained:
        """Load the weights of the best epoch, and return the curves."""
        if self.best is None:
            raise StageError(self.name, "no epoch ended after the last pruning update", "raise epochs")
        module = self.network.module
        module.load_state_dict(self.best_state)
        module.requires_grad_(True)
        module.eval().to("cpu")
        return Trained(
            curves=tuple(self.curves),
            best_epoch=self.best,
            validation_accuracy=self.curves[self.best].validation_accuracy,
        )

    def _do_step(self, epoch: int, index: int) -> None:
        batch = self._batch(index)
        if batch.count == 1:
            few = self.config.batch_size > self.engine.world
            place = self.name if few else f"{self.name}.batch_size"
            check_norms(self.network.module, place, "provide more data" if few else "raise batch_size")
        inputs, labels = self._tensors(batch)
        with self.engine.autocast():
            outputs = call(self.network.module, inputs)
            value = self.loss(inputs, outputs.float(), labels)
        truth = labels.argmax(dim=1) if labels.is_floating_point() else labels
        hits, labelled = (outputs.argmax(dim=1) == truth).sum(), (truth != UNLABELLED).sum()
        figures = torch.stack([value.detach().float(), hits.float(), labelled.float()])
        self.engine.average([figures])
        mean, *counts = figures.tolist()
        if not math.isfinite(mean):
            self._diverged(f"the loss became {mean} at epoch {epoch}, step {index}")
        self.optimizer.zero_grad(set_to_none=True)
        self.engine.backward(value)
        self.engine.average([p.grad for p in self.learned if p.grad is not None])
        for hook in self.hooks:
            hook.after_backward(self.step)
        factor = schedule(self.config, self.step, self.steps_per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        self.optimizer.step()
        self.network.apply_masks()
        for hook in self.hooks:
            hook.after_step(self.step)
        if self.average is not None:
            self.average.update(self.step)
        self.losses.append(mean)
        self.hits, self.labelled = (
            total + round(count * self.engine.world)
            for total, count in zip((self.hits, self.labelled), counts, strict=True)
        )

    def _batch(self, index: int) -> Split:
        """The part of a batch that this process computes."""
        size = self.config.batch_size
        mine = self.order[index * size : (index + 1) * size][self.engine.rank :: self.engine.world]
        return self.training.take(mine.numpy())

    def _tensors(self, batch: Split) -> tuple[dict[str, Tensor], Tensor]:
        inputs = {name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in batch.inputs.items()}
        labels = torch.from_numpy(batch.labels.astype(np.int64))
        if self.augment is not None:
            inputs = self.augment(inputs, self.draws)
        if self.config.mixup:
            inputs, labels = mixup(
                inputs,
                labels,
                classes=self.classes,
                alpha=self.config.mixup,
                generator=self.mixing,
                place=self.name,
            )
        device = self.engine.device
        on_device = {name: tensor.to(device) for name, tensor in inputs.items()}
        return laid_out(on_device, self.layout), labels.to(device)

    def _end_epoch(self, epoch: int) -> None:
        """Add the epoch to the curves, and store its weights if they are the best so far."""
        module = self.network.module
        if not all(bool(torch.isfinite(parameter).all()) for parameter in module.parameters()):
            self._diverged(f"the weights became infinite or NaN in the last step of epoch {epoch}")
        with self.average.in_place() if self.average is not None else nullcontext():
            self.network.apply_masks()
            self.engine.spread(module.buffers())
            found = torch.tensor(accuracy(module, self.validation), dtype=torch.float64).to(
                self.engine.device
            )
            self.engine.spread([found])
            rate = self.config.learning_rate * schedule(
                self.config, epoch * self.steps_per_epoch, self.steps_per_epoch
            )
            self.curves.append(
                Epoch(
                    epoch=epoch,
                    learning_rate=rate,
                    train_loss=float(np.mean(self.losses)),
                    train_accuracy=self.hits / max(1, self.labelled),
                    validation_accuracy=found.item(),
                )
            )
            better = self.best is None or found.item() >= self.curves[self.best].validation_accuracy
            if better and self._settled(epoch):
                self.best = epoch
                self.best_state = {name: t.detach().clone() for name, t in module.state_dict().items()}

    def _settled(self, epoch: int) -> bool:
        last = (epoch + 1) * self.steps_per_epoch - 1
        return all(hook.settled(last) for hook in self.hooks)

    def _patience_is_over(self) -> bool:
        """Whether `patience` epochs have passed since the last improvement of the validation accuracy.

        Epochs before the last change of the set of trained modules do not count.
        """
        if self.config.patience is None or self.best is None or self.step % self.steps_per_epoch:
            return False
        top = self.curves[self.best].validation_accuracy
        gained = next(
            e.epoch for e in self.curves if e.validation_accuracy == top and self._settled(e.epoch)
        )
        return len(self.curves) - 1 - max(gained, last_change(self.config)) >= self.config.patience

    def _diverged(self, cause: str) -> NoReturn:
        """Raise the error of a diverged training; if possible, save the weights of the best epoch first."""
        fix = "lower learning_rate"
        if self.best is not None and self.checkpoints is not None and self.engine.rank == 0:
            prefix: str = getattr(self.network.module, "wrapped_prefix", "")
            inner = {k.removeprefix(prefix): t for k, t in self.best_state.items() if k.startswith(prefix)}
            path = self.checkpoints.rescue(self.name, inner)
            fix += f"; the weights of epoch {self.best} are saved in {path}"
        raise StageError(self.name, cause, fix)

    def saved(self) -> Saved[_Values]:
        """The state of this training between two steps, for a checkpoint."""
        tensors = {
            **_prefixed("module", self.network.module.state_dict()),
            **_prefixed("best", self.best_state),
            **_prefixed("average", self.average.tensors if self.average is not None else {}),
            **_prefixed("loss", {str(i): p for i, p in enumerate(self.loss_parameters)}),
            "order": self.order,
            "random.generator": self.generator.get_state(),
            "random.torch": torch.get_rng_state(),
        }
        if self.engine.device.type == "cuda":
            tensors["random.device"] = torch.cuda.get_rng_state(self.engine.device)
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= _prefixed(f"optimizer.{index}", state)
        for index, hook in enumerate(self.hooks):
            tensors |= _prefixed(f"hook.{index}", hook.tensors())
        values = _Values(
            step=self.step,
            losses=tuple(self.losses),
            hits=self.hits,
            labelled=self.labelled,
            curves=tuple(self.curves),
            best=self.best,
            mixing=dict(self.mixing.bit_generator.state),
        )
        return Saved(tensors, values)

    def restore(self, saved: Saved[_Values]) -> None:
        """Set the state that `saved` returned."""
        tensors, values = saved.tensors, saved.values
        self.network.module.load_state_dict(_below("module", tensors))
        self.best_state = {k: t.to(self.engine.device) for k, t in _below("best", tensors).items()}
        with torch.no_grad():
            if self.average is not None:
                for key, tensor in _below("average", tensors).items():
                    self.average.tensors[key].copy_(tensor)
            for index, parameter in enumerate(self.loss_parameters):
                parameter.copy_(tensors[f"loss.{index}"])
        content = self.optimizer.state_dict()
        indices = sorted({int(key.split(".")[1]) for key in tensors if key.startswith("optimizer.")})
        content["state"] = {index: _below(f"optimizer.{index}", tensors) for index in indices}
        self.optimizer.load_state_dict(content)
        for index, hook in enumerate(self.hooks):
            hook.restore(_below(f"hook.{index}", tensors))
        self.order = tensors["order"]
        self.generator.set_state(tensors["random.generator"])
        torch.set_rng_state(tensors["random.torch"])
        if "random.device" in tensors:
            torch.cuda.set_rng_state(tensors["random.device"], self.engine.device)
        self.step, self.losses = values.step, list(values.losses)
        self.hits, self.labelled = values.hits, values.labelled
        self.curves, self.best = list(values.curves), values.best
        self.mixing.bit_generator.state = values.mixing


def _prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{key}": tensor for key, tensor in tensors.items()}


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    start = f"{prefix}."
    return {key.removeprefix(start): tensor for key, tensor in tensors.items() if key.startswith(start)}
