"""Reading weights that a stranger may have made, and fitting them into a network."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from exporter.errors import CheckpointError

SAFETENSORS = ".safetensors"
# Keys under which training scripts commonly nest the weights.
_NESTS = ("state_dict", "model", "model_state_dict", "net", "weights")
# What torch's optimizers remember of each parameter.
_OPTIMIZER_SLOTS = {"step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "square_avg"}
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
        CheckpointError: listing missing, unexpected and mis-shaped keys.
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
    module.load_state_dict(kept, strict=False)
    return Loaded(tensors=len(kept), new_head=head)


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(path)


def _read_torch(path: Path) -> Any:
    with warnings.catch_warnings():
        # Of pickle protocols that the reader would rather not see; it refuses or reads them all the same.
        warnings.simplefilter("ignore", UserWarning)
        return torch.load(path, map_location="cpu", weights_only=True)


def _unnest(content: Any, path: Path) -> dict[str, Tensor]:
    for _ in range(2):
        if isinstance(content, Mapping):
            nested = next((content[k] for k in _NESTS if isinstance(content.get(k), Mapping)), None)
            if nested is not None:
                content = nested
    if isinstance(content, Mapping):
        tensors = {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
        if _is_optimizer(content, tensors):
            raise CheckpointError(
                path, "holds an optimizer's state and no weights", "save `model.state_dict()`"
            )
        if tensors:
            return tensors
    raise CheckpointError(path, "holds no state dict", "save `model.state_dict()`")


def _is_optimizer(content: Mapping[Any, Any], tensors: Mapping[str, Tensor]) -> bool:
    """Whether a file holds what `optimizer.state_dict()` gives, alone, nested or flat, and nothing else."""
    if not tensors:
        inner = [value for value in content.values() if isinstance(value, Mapping)]
        return any("param_groups" in table for table in (content, *inner))
    return all(name.rpartition(".")[2] in _OPTIMIZER_SLOTS for name in tensors)


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
