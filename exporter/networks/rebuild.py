"""Apply a plan to a network: narrow its layers and drop its blocks."""

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
    """Apply a plan to a network that its factory has built.

        network = rebuild(my_factory(), "plan.json")
        network.load_state_dict(safetensors.torch.load_file("weights.safetensors"))

    Args:
        module: the network, changed in place. The remaining channels keep their weights.
        plan: the plan, or the path of its file.

    Returns:
        The same module.

    Raises:
        PlanError: the plan is damaged, or belongs to another network. The module may then be partly changed
            and must not be used.
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
    """Add a hook to a network that scales pictures [N, C, H, W] to a resolution before the network runs.

    The input size of the network does not change, so the same feeds, teachers and evaluation sets still
    fit. Another call replaces the resolution.
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
    """The hook that scales pictures. It is also an attribute of its network, so it can be found and copied.

    An integer ratio averages pixels, which avoids aliasing; other ratios interpolate linearly. For a ratio
    of 2, both give bit-identical results, and interpolation is used: in ONNX Runtime it takes 0.36 of the
    time of averaging (128 to 64 px).
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
    """Replacement for a dropped block: returns its first argument."""

    def forward(self, input: Tensor, *_others: object, **_named: object) -> Tensor:  # noqa: A002
        """[...] -> the same tensor; other arguments, for example masks, are ignored."""
        return input


def _drop(module: nn.Module, name: str) -> None:
    """Change a submodule so that it returns its input.

    The object itself is changed, because a network may hold it in several places, including plain lists,
    and may call it from any of them.
    """
    if not name:
        raise PlanError("dropped", "would drop the network itself", "list a block inside it")
    block = _find(module, name)
    left = PassedOn().train(block.training)
    try:
        block.__class__ = PassedOn
    except TypeError as error:
        raise PlanError(
            name, f"is a {type(block).__name__}, which cannot be dropped", "remove it from dropped"
        ) from error
    vars(block).clear()
    vars(block).update(vars(left))


def _narrow_parameter(module: nn.Module, name: str, left: KeptParameter) -> None:
    owner, _, leaf = name.rpartition(".")
    layer = _find(module, owner)
    value = dict(layer.named_parameters(recurse=False, remove_duplicate=False)).get(leaf)
    if value is None or left.axis >= value.ndim:
        raise PlanError(name, f"is not a parameter with an axis {left.axis}", OTHER_NETWORK)
    index = kept_index(left.kept, value.shape[left.axis], name)
    setattr(layer, leaf, parameter(value.index_select(left.axis, index), value))


def _set_attribute(module: nn.Module, name: str, value: int) -> None:
    """Lower an integer attribute; a plan must not be able to change anything else."""
    owner, _, leaf = name.rpartition(".")
    layer = _find(module, owner)
    old = vars(layer).get(leaf)
    if leaf.startswith("_") or type(old) is not int or not 1 <= value <= old:
        raise PlanError(
            name, f"cannot be set to {value}: a plan can only lower positive integers", OTHER_NETWORK
        )
    setattr(layer, leaf, value)


def _find(module: nn.Module, name: str) -> nn.Module:
    found: nn.Module | None = dict(module.named_modules(remove_duplicate=False)).get(name)
    if found is None:
        raise PlanError(name, "is not a module of the network", OTHER_NETWORK)
    return found
