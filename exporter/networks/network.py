"""The network that passes through the stages: a module, the masks of its pruned weights, and its plan."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from bench.core.arrays import Array
from exporter.graphs.ranges import Range
from exporter.graphs.trained_qparams import NO_TRAINED_QPARAMS, TrainedQparams
from exporter.networks.rebuild import rebuild
from exporter.networks.shrink_plan import PLAN, Plan, read_plan
from exporter.networks.zero_counts import count_zeros
from exporter.results import Zeros
from exporter.sources.splits import Split

WEIGHTS = "weights.safetensors"
MASKS = "masks.safetensors"
TRAINED_QPARAMS = "learned.safetensors"
_RANGE, _LEVELS = "range:", "steps:"
EVALUATION_BATCH = 64


@dataclass(frozen=True)
class Network:
    """A module with its masks, trained qparams and plan.

    Attributes:
        module: the network; stages train it in place and pass it on.
        masks: parameter name -> bool tensor of its shape, False for pruned weights. Every stage that
            changes weights calls `apply_masks` afterwards.
        trained_qparams: ranges and levels that were trained with the weights; the quantizer uses them
            unchanged.
        plan: the differences between the module and its factory's network; None if there are none.
    """

    module: nn.Module
    masks: Mapping[str, Tensor] = field(default_factory=dict)
    trained_qparams: TrainedQparams = NO_TRAINED_QPARAMS
    plan: Plan | None = None

    def apply_masks(self) -> None:
        """Set pruned weights back to zero."""
        if not self.masks:
            return
        parameters = dict(self.module.named_parameters())
        with torch.no_grad():
            for name, mask in self.masks.items():
                parameters[name].mul_(mask.to(parameters[name].device))

    def sparsity(self) -> float:
        """Fraction of the parameters with a mask that are zero; 0 for a dense network."""
        return self.zero_counts().sparsity

    def zero_counts(self) -> Zeros:
        """Counts of zero parameters, of parameters with a mask, and of all parameters."""
        return count_zeros(self.module, self.masks)

    def save(self, folder: Path) -> None:
        """Write weights, plan, masks and trained qparams."""
        state = {
            key: value.detach().contiguous().clone() for key, value in self.module.state_dict().items()
        }
        # Written as bytes: safetensors' `save_file` reports a full disk as an error of another type.
        (folder / WEIGHTS).write_bytes(save(state))
        if self.masks:
            masks = {name: mask.contiguous() for name, mask in self.masks.items()}
            (folder / MASKS).write_bytes(save(masks))
        if self.plan is not None:
            (folder / PLAN).write_text(self.plan.model_dump_json(exclude_none=True), encoding="utf-8")
        self.save_trained_qparams(folder)

    def save_trained_qparams(self, folder: Path) -> None:
        """Write only the trained qparams, if there are any; they are stored next to the exported model."""
        ranges = {
            f"{_RANGE}{name}": torch.tensor([r.lowest, r.highest])
            for name, r in self.trained_qparams.ranges.items()
        }
        levels = {
            f"{_LEVELS}{name}": torch.from_numpy(most) for name, most in self.trained_qparams.levels.items()
        }
        if ranges or levels:
            (folder / TRAINED_QPARAMS).write_bytes(save(ranges | levels))


def load_network(module: nn.Module, folder: Path) -> Network:
    """Restore a network from the files of `Network.save`; `module` comes new from its factory."""
    plan = read_plan(folder / PLAN) if (folder / PLAN).is_file() else None
    if plan is not None:
        rebuild(module, plan)
    module.load_state_dict(load_file(folder / WEIGHTS))
    masks = load_file(folder / MASKS) if (folder / MASKS).is_file() else {}
    return Network(module, masks, load_trained_qparams(folder), plan)


def load_trained_qparams(folder: Path) -> TrainedQparams:
    """The trained qparams that `Network.save_trained_qparams` wrote; empty if there is no file."""
    path = folder / TRAINED_QPARAMS
    values = dict(sorted(load_file(path).items())) if path.is_file() else {}
    return TrainedQparams(
        {k.removeprefix(_RANGE): Range(*v.tolist()) for k, v in values.items() if k.startswith(_RANGE)},
        {k.removeprefix(_LEVELS): v.numpy() for k, v in values.items() if k.startswith(_LEVELS)},
    )


def call(module: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    """Run a network on named inputs.

    Inputs are passed by name if `forward` has parameters of these names, otherwise in their order.
    """
    output = module(**inputs) if takes_names(module, inputs) else module(*inputs.values())
    if not isinstance(output, Tensor):
        raise TypeError(f"forward returned {type(output).__name__}, not one tensor of class scores")
    return output


def takes_names(module: nn.Module, names: Mapping[str, object]) -> bool:
    """Whether `forward` has a parameter for each of the names."""
    import inspect

    parameters = inspect.signature(module.forward).parameters.values()
    variable = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
    return set(names) <= {parameter.name for parameter in parameters if parameter.kind not in variable}


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Set evaluation mode while the context is open, and restore the mode of each submodule afterwards."""
    # `train` would change all submodules, but frozen ones that were in evaluation mode must return to it.
    modes = {child: child.training for child in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for child, training in modes.items():
            child.training = training


def predict(module: nn.Module, split: Split, batch_size: int = EVALUATION_BATCH) -> Array:
    """Outputs of a network in evaluation mode, [N, classes]."""
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    with evaluating(module), torch.inference_mode():
        outputs = [
            call(
                module,
                {
                    name: torch.from_numpy(np.ascontiguousarray(array)).to(device)
                    for name, array in feeds.items()
                },
            )
            .cpu()
            .numpy()
            for feeds in split.batches(batch_size)
        ]
    return np.concatenate(outputs)


def accuracy(module: nn.Module, split: Split) -> float:
    """Fraction of samples whose largest output belongs to the labelled class."""
    return float((predict(module, split).argmax(axis=1) == split.labels).mean())


@contextmanager
def deterministic(seed: int, name: str, device: torch.device | None = None) -> Iterator[torch.Generator]:
    """Make all random numbers inside the context depend only on `seed` and `name`.

    The state of the random generators outside does not change. `device` is a device to include besides the
    CPU; a GPU may still sum in another order.

    Yields a generator for the caller's own random numbers.
    """
    number = int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:4], "big")
    before = torch.are_deterministic_algorithms_enabled()
    others = [device] if device is not None and device.type == "cuda" else []
    with torch.random.fork_rng(devices=others):
        torch.manual_seed(number)
        # Some CUDA kernels have no deterministic form: training on a GPU then continues with a warning.
        torch.use_deterministic_algorithms(True, warn_only=bool(others))
        try:
            yield torch.Generator().manual_seed(number)
        finally:
            torch.use_deterministic_algorithms(before)


def matches(name: str, prefixes: tuple[str, ...]) -> bool:
    """Whether a dotted name is one of `prefixes` or is below one of them."""
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)
