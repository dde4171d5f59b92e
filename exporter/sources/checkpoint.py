"""Read weights from untrusted files, and load them into a network."""

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
# Keys under which training scripts commonly store the weights.
_NESTS = ("state_dict", "model", "model_state_dict", "net", "weights")
# Keys of moving averages of the weights; they are used if the file contains no other weights.
_AVERAGES = ("ema", "model_ema", "state_dict_ema", "ema_state_dict")
# Names of the tensors that PyTorch's optimizers store for each parameter.
_OPTIMIZER_SLOTS = {
    *("step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "mu_product"),  # Adam and variants
    *("momentum_buffer", "square_avg", "grad_avg", "acc_delta", "sum"),  # SGD, RMSprop, Adadelta, Adagrad
    *("prev", "step_size"),  # Rprop
}
_LISTED = 5


@dataclass(frozen=True)
class Loaded:
    """The result of loading a checkpoint.

    Attributes:
        tensors: number of tensors that were loaded.
        new_head: name of the last layer if its number of classes differs from the checkpoint's, so that it
            keeps its random weights; otherwise None.
    """

    tensors: int
    new_head: str | None


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Read a state dict from `.safetensors` or from a PyTorch file of tensors, without running code in it.

    Raises:
        CheckpointError: the file is missing or truncated, is a pickle that would run code, or contains no
            state dict.
    """
    if not path.is_file():
        raise CheckpointError(path, "there is no such file", "check the path")
    try:
        content = _read_safetensors(path) if path.suffix == SAFETENSORS else _read_torch(path)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            path,
            "is a pickle that would run code, or not a PyTorch file; it was not opened",
            "save only `model.state_dict()`, preferably as .safetensors",
        ) from error
    except CheckpointError:
        raise
    except Exception as error:  # the parsers of both formats raise exceptions of many types
        raise CheckpointError(
            path, f"is truncated or not a checkpoint ({error})", "copy the file again"
        ) from error
    return _plain_names(_unnest(content, path))


def load_into(module: nn.Module, state: Mapping[str, Tensor], place: object) -> Loaded:
    """Copy weights into a network with the same keys and shapes.

    There is one exception, which allows transfer learning. If only the number of classes of the last layer
    differs, that layer keeps its random weights, and the result names it.

    Args:
        module: the network; it is changed.
        state: name -> tensor, as `read_checkpoint` returns it.
        place: name of the checkpoint in errors.

    Raises:
        CheckpointError: keys are missing, unexpected or of another shape, or a tensor contains NaN or
            infinity; the error lists them.
    """
    own = module.state_dict()
    # Checkpoints of old PyTorch versions do not contain this counter, and are complete without it.
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
                "of another shape",
                [f"{k} {list(state[k].shape)}, expected {list(own[k].shape)}" for k in shaped],
            ),
        ]
        raise CheckpointError(
            place, f"belongs to another network: {'; '.join(details)}", "check model.factory and its args"
        )
    kept = {k: v for k, v in state.items() if head is None or not k.startswith(f"{head}.")}
    for key, value in kept.items():
        # A value may be infinite or NaN if it is so in the new network too: attention masks contain -inf.
        if bool((own[key].isfinite() & ~value.to(own[key].dtype).isfinite()).any()):
            raise CheckpointError(
                place,
                f"{key!r} contains NaN or infinity",
                "use a checkpoint from before the training diverged",
            )
    module.load_state_dict(kept, strict=False)
    return Loaded(tensors=len(kept), new_head=head)


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(path)


def _read_torch(path: Path) -> Any:
    # PyTorch warns about old pickle protocols, but reads or refuses such files regardless of the warning.
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
            f"contains no state dict under a usual name, but tensors under {', '.join(map(repr, others))}",
            "save only the network's `state_dict()`",
        )
    if optimizer:
        raise CheckpointError(
            path, "contains the state of an optimizer but no weights", "save `model.state_dict()`"
        )
    raise CheckpointError(path, "contains no state dict", "save `model.state_dict()`")


def _within(content: Any) -> Any:
    """The value of the first key in `_NESTS`; `content` itself if it has no such key."""
    if not isinstance(content, Mapping):
        return content
    return next((content[k] for k in _NESTS if isinstance(content.get(k), Mapping)), content)


def _tensors(content: Any) -> dict[str, Tensor]:
    parts = content.items() if isinstance(content, Mapping) else ()
    return {str(key): value for key, value in parts if isinstance(value, Tensor)}


def _may_be_weights(tensors: Mapping[str, Tensor]) -> bool:
    """Whether tensors can be weights, and are not optimizer state, generator state or scalars."""
    return not _are_slots(tensors) and any(t.is_floating_point() and t.ndim for t in tensors.values())


def _holds_optimizer(content: Mapping[Any, Any], tensors: Mapping[str, Tensor]) -> bool:
    """Whether a file contains the result of `optimizer.state_dict()`: at the top, nested, or in a list."""
    values = list(content.values())
    nested = [table for value in values if isinstance(value, list | tuple) for table in value]
    tables = (content, *values, *nested)
    return _are_slots(tensors) or any(isinstance(t, Mapping) and "param_groups" in t for t in tables)


def _are_slots(tensors: Mapping[str, Tensor]) -> bool:
    return bool(tensors) and all(name.rpartition(".")[2] in _OPTIMIZER_SLOTS for name in tensors)


def _plain_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state without the prefix `module.`, which DataParallel adds to every key."""
    prefix = "module."
    if all(key.startswith(prefix) for key in state):
        return {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _replaced_head(
    module: nn.Module, own: Mapping[str, Tensor], state: Mapping[str, Tensor], shaped: list[str]
) -> str | None:
    """Name of the last layer if only its number of classes differs; otherwise None.

    Args:
        module: the network.
        own: state dict of the network.
        state: state dict of the checkpoint.
        shaped: keys whose shapes differ.
    """
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
