"""Find the removable parts of a network: groups of channels that must be removed together, and blocks.

Every part found here was tried: without it the network runs and its outputs keep their shape. Removing a
channel has the same effect as setting it to zero.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from exporter.networks.module_calls import ModuleCall, has_weights, observe_calls
from exporter.networks.network import call, matches
from exporter.networks.rebuild import rebuild
from exporter.networks.shrink_plan import KeptChannels, KeptParameter, Plan
from exporter.training.shrinking.groups import Group, find_groups
from exporter.training.shrinking.layer_costs import executed_flops

_OVER_CHANNELS = (nn.LayerNorm, nn.GroupNorm)
# Rounding errors of a changed summation order are far smaller; the error of a wrong removal is far larger.
_RTOL = 1e-3


@dataclass(frozen=True)
class Structure:
    """The removable parts of a network.

    Attributes:
        groups: groups of channels that can be narrowed.
        blocks: names of the modules that can be dropped.
        fixed: layer name -> reason why it cannot be narrowed or dropped.
    """

    groups: tuple[Group, ...]
    blocks: tuple[str, ...]
    fixed: Mapping[str, str]

    def inside(self, block: str) -> frozenset[str]:
        """Names of the groups whose layers are all inside a block; dropping the block removes them."""
        return frozenset(
            group.name
            for group in self.groups
            if all(matches(member.name, (block,)) for member in group.members)
        )


def find_structure(
    module: nn.Module, inputs: Mapping[str, Tensor], exclude: tuple[str, ...], place: str
) -> Structure:
    """Find the groups and blocks that can be removed, in the order of the network's modules.

    Args:
        module: the network.
        inputs: two samples.
        exclude: modules that keep their channels, by name or dotted prefix.
        place: the stage or key that error messages name.

    Raises:
        StageError: the network cannot be traced.
    """
    module = copy.deepcopy(module).eval().requires_grad_(True)
    groups: dict[str, Group] = {}
    fixed: dict[str, str] = {}
    for group, reason in find_groups(module, inputs, exclude, place):
        if group.name in groups:
            continue
        problem = (
            reason or failure(module, inputs, removal({group: [0]})) or _inexact(module, inputs, group)
        )
        if problem is None:
            groups[group.name] = group
            fixed.pop(group.name, None)
        else:
            fixed[group.name] = problem
    order = [name for name, _ in module.named_modules()]
    blocks = []
    for name in _same_shape_blocks(module, inputs):
        if matches(name, exclude) or any(matches(other, (name,)) for other in exclude):
            continue
        problem = failure(module, inputs, Plan(dropped=(name,)))
        if problem is None:
            blocks.append(name)
        else:
            fixed.setdefault(name, problem)
    return Structure(tuple(groups[name] for name in order if name in groups), tuple(blocks), fixed)


def removal(removed: Mapping[Group, Iterable[int]], dropped: tuple[str, ...] = ()) -> Plan:
    """The plan that removes units and blocks from a network.

    Args:
        removed: group -> indices of the units to remove.
        dropped: names of the blocks to drop.
    """
    lost: dict[tuple[str, str | int], set[int]] = {}
    sizes: dict[tuple[str, str | int], int] = {}
    attributes: dict[str, int] = {}
    for group, units in removed.items():
        gone = set(units)
        roots = {channel for unit in gone for channel in group.units[unit]}
        for member in group.members:
            side = (member.name, member.axis)
            sizes[side] = member.size
            lost.setdefault(side, set()).update(
                p for p, root in zip(member.positions, member.roots, strict=True) if root in roots
            )
        attributes |= {name: len(group.units) - len(gone) for name in group.heads}
    modules: dict[str, dict[str, tuple[int, ...]]] = {}
    parameters = {}
    for (name, axis), positions in lost.items():
        kept = tuple(index for index in range(sizes[name, axis]) if index not in positions)
        if isinstance(axis, int):
            parameters[name] = KeptParameter(axis=axis, kept=kept)
        else:
            modules.setdefault(name, {})[axis] = kept
    return Plan(
        modules={name: KeptChannels(**sides) for name, sides in modules.items()},
        parameters=parameters,
        attributes=attributes,
        dropped=dropped,
    )


def failure(module: nn.Module, inputs: Mapping[str, Tensor], plan: Plan) -> str | None:
    """The reason why a plan cannot be applied to a network, or None if it can.

    A plan can be applied if the network still runs, its outputs keep their shape, and the removed parts
    really no longer run. Bit-identical outputs are accepted only if fewer multiply-adds run. Otherwise the
    network computes with parts that the plan does not reach, or it never ran the parts that the plan names.
    """
    trial = copy.deepcopy(module).eval()
    try:
        with torch.no_grad():
            before = call(trial, inputs)
            after = call(rebuild(trial, plan), inputs)
            if after.shape != before.shape:
                return "the network's outputs would change their shape"
            if not _takes_away(plan) or not torch.equal(before, after):
                return None
            if executed_flops(trial, inputs) < executed_flops(copy.deepcopy(module).eval(), inputs):
                return None
    except Exception as error:  # noqa: BLE001 (a user's forward may raise anything when its channels change)
        return f"the network no longer runs ({str(error).splitlines()[0][:120]})"
    return "the network's output does not change at all: this part still runs elsewhere, or never ran"


def _takes_away(plan: Plan) -> bool:
    """Whether a plan drops or narrows anything; a plan that only scales pictures does not."""
    return bool(plan.dropped or plan.modules or plan.parameters)


def _inexact(module: nn.Module, inputs: Mapping[str, Tensor], group: Group) -> str | None:
    """The reason why removing a group's first unit differs from zeroing it, or None if it does not.

    Groups with a norm that computes its statistics over the channels are not compared: removing channels
    changes these statistics.
    """
    zeroed = copy.deepcopy(module)
    gone = set(group.units[0])
    for member in group.members:
        layer = None if isinstance(member.axis, int) else zeroed.get_submodule(member.name)
        if isinstance(layer, _OVER_CHANNELS):
            return None
        if member.axis == "inputs" and layer is not None:
            lost = [p for p, root in zip(member.positions, member.roots, strict=True) if root in gone]
            layer.register_forward_pre_hook(_without(lost, -1 if isinstance(layer, nn.Linear) else 1))
    with torch.no_grad():
        expected = call(zeroed, inputs)
        found = call(rebuild(copy.deepcopy(module), removal({group: [0]})), inputs)
    close = torch.allclose(found, expected, rtol=_RTOL, atol=_RTOL * float(expected.abs().max()))
    return None if close else "removing one of its channels is not the same as setting it to zero"


def _without(lost: Sequence[int], axis: int) -> Callable[..., tuple[Tensor, ...]]:
    """A forward pre-hook that sets channels of a layer's input to zero."""
    return lambda _layer, args: (*(value.index_fill(axis, torch.tensor(lost), 0.0) for value in args),)


class _Call(NamedTuple):
    """One call of a module, with the identical objects that it received and returned."""

    name: str
    given: object
    gave: object


def _same_shape_blocks(module: nn.Module, inputs: Mapping[str, Tensor]) -> list[str]:
    """Outermost modules that contain several layers and return the shape that they receive.

    A plain chain of these modules is not a block itself: each of its modules can be dropped separately.
    """
    fits: dict[str, bool] = {}
    links: dict[str, list[str]] = {}
    apart: list[_Call] = []  # calls that are not part of another finished call so far

    def observe(made: ModuleCall) -> None:
        name, output = made.name, made.output
        given = made.args[0] if len(made.args) == 1 and not made.kwargs else None
        whole = _Call(name, given, output)
        parts = [part for part in apart if matches(part.name, (name,))]
        apart[:] = [*(other for other in apart if not matches(other.name, (name,))), whole]
        if _is_chain(whole, parts):
            links[name] = [part.name for part in parts]
        if sum(map(has_weights, made.module.modules())) < 2:
            return
        alike = isinstance(given, Tensor) and isinstance(output, Tensor) and given.shape == output.shape
        fits[name] = alike and name not in fits

    observe_calls(module, inputs, observe)
    good = {name for name, fit in fits.items() if fit}
    good -= {name for name in good if good.intersection(links.get(name, ()))}
    return [
        name
        for name, _ in module.named_modules()
        if name in good and not any(name != other and matches(name, (other,)) for other in good)
    ]


def _is_chain(whole: _Call, parts: Sequence[_Call]) -> bool:
    """Whether each part receives exactly what the previous part returned, and nothing else is computed."""
    given = [whole.given, *(part.gave for part in parts)]
    wanted = [*(part.given for part in parts), whole.gave]
    return bool(parts) and all(one is other for one, other in zip(given, wanted, strict=True))
