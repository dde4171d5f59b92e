"""Reading weights that a stranger may have made, and fitting them into a network."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from exporter.errors import CheckpointError
from exporter.process import warnings_ignored

SAFETENSORS = ".safetensors"
# Keys under which training scripts commonly nest the weights.
_NESTS = ("state_dict", "model", "model_state_dict", "net", "weights")
# Running averages of them, which are good weights too: taken where there are no others.
_AVERAGES = ("ema", "model_ema", "state_dict_ema", "ema_state_dict")
# What torch's optimizers remember of each parameter.
_OPTIMIZER_SLOTS = {
    *("step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "mu_product"),  # Adam's kin
    *("momentum_buffer", "square_avg", "grad_avg", "acc_delta", "sum"),  # SGD, RMSprop, Adadelta, Adagrad
    *("prev", "step_size"),  # Rprop
}
_LISTED = 5


@dataclass(frozen=True)
class Loaded:
    """What became of a checkpoint: `new_head` names the module whose classes did not fit, if any."""

    tensors: int
    new_head: str | None


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Read a state dict from `.safetensors` or from a PyTorch file of tensors; no code in it is run.

    Raises:
        CheckpointError: missing, truncated, or a pickle that wants to run code.
    """
    if not path.is_file():
        raise CheckpointError(path, "there is no such file", "check the path")
    try:
        content = _read_safetensors(path) if path.suffix == SAFETENSORS else _read_torch(path)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            path,
            "is a pickle that would run code, or no PyTorch file at all; it was not opened",
            "save `model.state_dict()` alone, best as .safetensors",
        ) from error
    except CheckpointError:
        raise
    except Exception as error:  # both readers raise whatever their parsers do
        raise CheckpointError(path, f"is truncated or no checkpoint ({error})", "copy it again") from error
    return _plain_names(_unnest(content, path))


def load_into(module: nn.Module, state: Mapping[str, Tensor], place: object) -> Loaded:
    """Copy weights into a network whose keys and shapes they fit.

    One exception makes transfer possible: where nothing differs but the number of classes of the
    last layer, that layer keeps its fresh initialisation, and the answer names it.

    Raises:
        CheckpointError: listing missing, unexpected and mis-shaped keys, or naming a tensor of which not
            all numbers are finite.
    """
    own = module.state_dict()
    # Checkpoints from before this counter existed are complete without it.
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in state if k not in own]
    shaped = [k for k in own if k in state and own[k].shape != state[k].shape]
    head = None
    if shaped and not missing and not unexpected:
        head = _replaced_head(module, own, state, shaped)
        if head is not None:
            shaped = []
    if missing or unexpected or shaped:
        details = [
            *_listed("missing", missing),
            *_listed("unexpected", unexpected),
            *_listed(
                "mis-shaped",
                [f"{k} {list(state[k].shape)} for {list(own[k].shape)}" for k in shaped],
            ),
        ]
        raise CheckpointError(
            place, f"belongs to another network: {'; '.join(details)}", "check model.factory and its args"
        )
    kept = {k: v for k, v in state.items() if head is None or not k.startswith(f"{head}.")}
    for key, value in kept.items():
        # Not where the fresh network has such values too: masks of attention are made of -inf.
        if bool((own[key].isfinite() & ~value.to(own[key].dtype).isfinite()).any()):
            raise CheckpointError(
                place, f"{key!r} holds NaN or infinity", "give a checkpoint of before its training diverged"
            )
    module.load_state_dict(kept, strict=False)
    return Loaded(tensors=len(kept), new_head=head)


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(path)


def _read_torch(path: Path) -> Any:
    # Of pickle protocols that the reader would rather not see; it refuses or reads them all the same.
    with warnings_ignored():
        return torch.load(path, map_location="cpu", weights_only=True)


def _unnest(content: Any, path: Path) -> dict[str, Tensor]:
    content = _within(_within(content))
    parts = content if isinstance(content, Mapping) else {}
    tensors = _tensors(parts)
    optimizer = _holds_optimizer(parts, tensors)
    if tensors and (not optimizer or _may_be_weights(tensors)):
        return tensors
    inner = {str(key): _tensors(_within(value)) for key, value in parts.items()}
    others = {key: found for key, found in inner.items() if _may_be_weights(found)}
    for key in _AVERAGES:
        if key in others:
            return others[key]
    if others:
        raise CheckpointError(
            path,
            f"holds no state dict under a usual name, but tensors under {', '.join(map(repr, others))}",
            "save the network's `state_dict()` alone",
        )
    if optimizer:
        raise CheckpointError(
            path, "holds an optimizer's state and no weights", "save `model.state_dict()`"
        )
    raise CheckpointError(path, "holds no state dict", "save `model.state_dict()`")


def _within(content: Any) -> Any:
    """What is nested under a usual key, else the same."""
    if not isinstance(content, Mapping):
        return content
    return next((content[k] for k in _NESTS if isinstance(content.get(k), Mapping)), content)


def _tensors(content: Any) -> dict[str, Tensor]:
    parts = content.items() if isinstance(content, Mapping) else ()
    return {str(key): value for key, value in parts if isinstance(value, Tensor)}


def _may_be_weights(tensors: Mapping[str, Tensor]) -> bool:
    """Whether tensors beside an optimizer can be a network's, not a generator's state or lone numbers."""
    return not _are_slots(tensors) and any(t.is_floating_point() and t.ndim for t in tensors.values())


def _holds_optimizer(content: Mapping[Any, Any], tensors: Mapping[str, Tensor]) -> bool:
    """Whether a file has what `optimizer.state_dict()` gives: as it is, nested, in a list, or flat."""
    values = list(content.values())
    nested = [table for value in values if isinstance(value, list | tuple) for table in value]
    tables = (content, *values, *nested)
    return _are_slots(tensors) or any(isinstance(t, Mapping) and "param_groups" in t for t in tables)


def _are_slots(tensors: Mapping[str, Tensor]) -> bool:
    return bool(tensors) and all(name.rpartition(".")[2] in _OPTIMIZER_SLOTS for name in tensors)


def _plain_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the prefix that DataParallel puts before every key."""
    prefix = "module."
    if all(key.startswith(prefix) for key in state):
        return {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _replaced_head(
    module: nn.Module, own: Mapping[str, Tensor], state: Mapping[str, Tensor], shaped: list[str]
) -> str | None:
    """The last layer, if all mis-shaped keys are its and differ in the number of classes alone."""
    owners = {key.rpartition(".")[0] for key in shaped}
    last = [name for name, m in module.named_modules() if any(True for _ in m.parameters(recurse=False))][
        -1
    ]
    same_features = all(own[key].shape[1:] == state[key].shape[1:] for key in shaped)
    return last if owners == {last} and same_features else None


def _listed(what: str, keys: list[str]) -> list[str]:
    if not keys:
        return []
    more = f" and {len(keys) - _LISTED} more" if len(keys) > _LISTED else ""
    return [f"{len(keys)} {what} ({', '.join(keys[:_LISTED])}{more})"]
