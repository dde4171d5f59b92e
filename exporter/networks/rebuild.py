"""Giving a network the shape that a plan describes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional

from exporter.errors import PlanError
from exporter.networks.narrow import OTHER_NETWORK, kept_index, narrow, parameter
from exporter.networks.shrink_plan import KeptParameter, Plan, read_plan

_INPUT_SCALE = "edgeproof_input_scale"


def rebuild(module: nn.Module, plan: Plan | Path | str) -> nn.Module:
    """Give a network that a factory just built the shape that a plan describes.

        network = rebuild(my_factory(), "plan.json")
        network.load_state_dict(safetensors.torch.load_file("weights.safetensors"))

    Args:
        module: the network, changed in place. The channels that are left keep their weights.
        plan: or the file that holds it.

    Returns:
        The same module.

    Raises:
        PlanError: the plan is damaged, or belongs to another network, which is then of no more use.
    """
    if not isinstance(plan, Plan):
        plan = read_plan(Path(plan))
    for name, channels in plan.modules.items():
        narrow(_find(module, name), name, channels)
    for name, kept in plan.parameters.items():
        _narrow_parameter(module, name, kept)
    for name, value in plan.attributes.items():
        _set_attribute(module, name, value)
    for name in plan.dropped:
        _drop(module, name)
    if plan.resolution is not None:
        scale_inputs(module, plan.resolution)
    return module


def scale_inputs(module: nn.Module, resolution: tuple[int, int]) -> None:
    """Let a network scale its pictures [N, C, H, W] before it looks at them; the newest call counts.

    Its inputs stay those of the wider network: the same feeds, teachers and evaluation sets fit.
    """
    scale: _Scale | None = getattr(module, _INPUT_SCALE, None)
    if scale is not None:
        scale.resolution = resolution
        return
    scale = _Scale(resolution)
    module.register_forward_pre_hook(scale, with_kwargs=True)
    setattr(module, _INPUT_SCALE, scale)


@dataclass
class _Scale:
    """A hook that is an attribute of its network too, so that it can be found and copied.

    A whole ratio averages, which aliases nothing; any other interpolates linearly. To halve, both are the
    same to the bit, and ONNX Runtime interpolates in 0.36 of the time that it averages in (128 to 64 px).
    """

    resolution: tuple[int, int]

    def __call__(
        self, _module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> tuple[tuple[object, ...], dict[str, object]]:
        return tuple(map(self._scale, args)), {name: self._scale(value) for name, value in kwargs.items()}

    def _scale(self, value: object) -> object:
        if not isinstance(value, Tensor) or value.ndim != 4 or not value.is_floating_point():
            return value
        (height, width), (tall, wide) = value.shape[-2:], self.resolution
        if (height, width) == (tall, wide):
            return value
        halved = (height, width) == (2 * tall, 2 * wide)
        if height % tall == 0 and width % wide == 0 and not halved:
            return functional.avg_pool2d(value, (height // tall, width // wide))
        return functional.interpolate(value, size=(tall, wide), mode="bilinear", align_corners=False)


class PassedOn(nn.Identity):
    """What is left of a dropped block: it gives back the first of what it is given."""

    def forward(self, input: Tensor, *_others: object, **_named: object) -> Tensor:  # noqa: A002
        """[...] -> the same tensor; masks and the like are not looked at."""
        return input


def _drop(module: nn.Module, name: str) -> None:
    """Turn a submodule into one that passes its input on.

    The object itself is changed: a network may hold it in several places, also in plain lists, and may call
    it by any of them.
    """
    if not name:
        raise PlanError("dropped", "would drop the network itself", "name a block inside it")
    block = _find(module, name)
    left = PassedOn().train(block.training)
    try:
        block.__class__ = PassedOn
    except TypeError as error:
        raise PlanError(
            name, f"is a {type(block).__name__}, which cannot be dropped", "leave it in"
        ) from error
    vars(block).clear()
    vars(block).update(vars(left))


def _narrow_parameter(module: nn.Module, name: str, left: KeptParameter) -> None:
    owner, _, leaf = name.rpartition(".")
    layer = _find(module, owner)
    value = dict(layer.named_parameters(recurse=False, remove_duplicate=False)).get(leaf)
    if value is None or left.axis >= value.ndim:
        raise PlanError(name, "is no parameter with that axis", OTHER_NETWORK)
    index = kept_index(left.kept, value.shape[left.axis], name)
    setattr(layer, leaf, parameter(value.index_select(left.axis, index), value))


def _set_attribute(module: nn.Module, name: str, value: int) -> None:
    """Only a whole number may change, and only downwards: a plan must not reach anything else."""
    owner, _, leaf = name.rpartition(".")
    layer = _find(module, owner)
    old = vars(layer).get(leaf)
    if leaf.startswith("_") or type(old) is not int or not 1 <= value <= old:
        raise PlanError(name, f"cannot become {value}", OTHER_NETWORK)
    setattr(layer, leaf, value)


def _find(module: nn.Module, name: str) -> nn.Module:
    found: nn.Module | None = dict(module.named_modules(remove_duplicate=False)).get(name)
    if found is None:
        raise PlanError(name, "is no module of the network", OTHER_NETWORK)
    return found
