"""Groups of channels that several layers share and that must be removed from all of them together.

Torch-Pruning's dependency graph (Fang et al., "DepGraph", CVPR 2023) finds the dependent channels. Only its
analysis is used; this module translates the result into layer names and channel indices.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bench.core.errors import MissingExtraError, one_line
from exporter.errors import StageError
from exporter.networks.layer_kinds import Convolution
from exporter.networks.module_calls import ModuleCall, has_weights, observe_calls
from exporter.networks.narrow import channels
from exporter.networks.network import call, matches
from exporter.process import warnings_ignored

# Names of the integer attributes in which attention modules store their number of heads.
HEAD_COUNTS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "heads")


@dataclass(frozen=True)
class Member:
    """One side (inputs or outputs) of one layer in a group.

    Attributes:
        name: name of the module, or of a parameter that belongs to no layer.
        axis: `outputs`, `inputs`, or the axis of a parameter that belongs to no layer.
        positions: channel indices of the layer, [M].
        roots: index of the group's channel for each position, [M].
        size: number of all channels on this side of the layer, including those outside the group.
    """

    name: str
    axis: str | int
    positions: tuple[int, ...]
    roots: tuple[int, ...]
    size: int


@dataclass(frozen=True)
class Group:
    """Channels that several layers share.

    Attributes:
        name: name of the layer that produces the channels.
        size: number of channels.
        units: the channel indices of each unit; a unit is removed or kept as a whole. A unit is a single
            channel, or the channels that another layer combines into one, or an attention head, or one
            channel from each group of a grouped convolution.
        members: the layer sides that hold these channels.
        heads: attributes that count the units, for example `block.attention.num_heads`.
    """

    name: str
    size: int
    units: tuple[tuple[int, ...], ...]
    members: tuple[Member, ...]
    heads: tuple[str, ...] = ()


def find_groups(
    module: nn.Module, inputs: Mapping[str, Tensor], exclude: tuple[str, ...], place: str
) -> Iterator[tuple[Group, str | None]]:
    """Yield each group of a network with the reason why it cannot be narrowed, or None.

    If channels may be attention heads, a second group of the same name follows whose units are the heads.
    The caller tries both: the network runs only with the correct one.

    Args:
        module: the network; its parameters require gradients.
        inputs: two samples.
        exclude: modules that keep their channels, by name or dotted prefix.
        place: the stage or key that error messages name.

    Raises:
        StageError: the network cannot be traced.
    """
    graph = _dependency_graph(module, inputs, place)
    names = {id(child): name for name, child in module.named_modules()}
    names |= {id(parameter): name for name, parameter in module.named_parameters()}
    tied, reused = _tied(module), _called_twice(module, inputs)
    for found in graph.get_all_groups(root_module_types=[Convolution, nn.Linear]):
        members, problem = _members(graph, found, names)
        if not members:
            continue
        touched = {member.name for member in members}
        if touched & tied:
            problem = "its weights are tied to another layer's"
        elif touched & reused:
            problem = "it is called more than once"
        elif any(matches(name, exclude) for name in touched):
            problem = "excluded"
        yield from _group(len(found[0].idxs), members, module, problem)


def _dependency_graph(module: nn.Module, inputs: Mapping[str, Tensor], place: str) -> Any:
    try:
        import torch_pruning
    except ModuleNotFoundError as error:
        raise MissingExtraError("torch_pruning", "export") from error
    try:
        with torch.enable_grad(), warnings_ignored():
            return torch_pruning.DependencyGraph().build_dependency(
                module, example_inputs=dict(inputs), forward_fn=call, verbose=False
            )
    except Exception as error:  # the user's forward and the library may raise any exception
        raise StageError(
            place,
            f"the dependencies of the network's channels cannot be traced ({one_line(str(error), 200)})",
            "remove this stage; the other stages do not need these dependencies",
        ) from error


def _members(graph: Any, found: Any, names: Mapping[int, str]) -> tuple[list[Member], str | None]:
    """Translate a group of Torch-Pruning into members, and the reason why it cannot be narrowed."""
    members: list[Member] = []
    problem = None
    for item in found:
        layer, label = item.dep.target.module, names.get(id(item.dep.target.module))
        if label is None:  # an operator without weights
            continue
        positions, roots = tuple(map(int, item.idxs)), tuple(map(int, item.root_idxs))
        if isinstance(layer, nn.Parameter):
            axis = item.dep.target.pruning_dim % layer.ndim
            members.append(Member(label, axis, positions, roots, layer.shape[axis]))
            continue
        sides = ["outputs"] if graph.is_out_channel_pruning_fn(item.dep.handler) else ["inputs"]
        if _is_depthwise(layer):
            sides = ["outputs", "inputs"]
            if layer.out_channels != layer.in_channels:
                problem = f"{label!r} is depthwise with a multiplier"
        for side in sides:
            if (count := channels(layer, side)) is not None:
                # Torch-Pruning does not follow a split whose parts meet again, for example query, key and
                # value: its positions then continue past the channels of one part.
                member = Member(label, side, tuple(p % count for p in positions), roots, count)
                members += [member] if member not in members else []
            elif any(parameter.numel() > 1 for parameter in layer.parameters()):
                problem = f"{label!r} is a {type(layer).__name__}, which cannot be narrowed"
    return members, problem


def _group(
    size: int, members: Sequence[Member], module: nn.Module, problem: str | None
) -> Iterator[tuple[Group, str | None]]:
    """Name a group and divide it into units: once into channels, once into attention heads if possible."""
    order = [name for name, _ in module.named_modules()]
    makers = [m.name for m in members if m.axis == "outputs" and m.size == size and _makes(module, m.name)]
    name = min(makers, key=order.index) if makers else members[0].name
    bound = _bound(size, members)
    pieces = {_pieces(module, member) for member in members}
    most, plain = max(pieces), all(m.positions == m.roots for m in members if _pieces(module, m) > 1)
    if len(bound) % most or any(most % other for other in pieces) or not plain:
        problem = problem or "the groups of its grouped layers do not divide its channels evenly"
        most = 1
    count = len(bound) // most  # a unit has one channel from each group of a grouped layer
    single = tuple(_joined(bound[unit::count]) for unit in range(count))
    yield Group(name, size, single, tuple(members)), problem
    heads = _heads(members, module)
    count = next(iter(heads.values()), 1)
    if count > 1 and most == 1 and len(bound) % count == 0:
        width = len(bound) // count
        runs = tuple(_joined(bound[unit * width : (unit + 1) * width]) for unit in range(count))
        yield Group(name, size, runs, tuple(members), tuple(heads)), problem


def _joined(parts: Sequence[Sequence[int]]) -> tuple[int, ...]:
    return tuple(channel for part in parts for channel in part)


def _bound(size: int, members: Sequence[Member]) -> list[list[int]]:
    """Sets of channels that can only be removed together.

    Channels belong to one set if a layer combines them into one of its channels, as attention combines
    channels of query, key and value.
    """
    leader = list(range(size))
    for member in members:
        first: dict[int, int] = {}
        for position, root in zip(member.positions, member.roots, strict=True):
            mine, other = leader[root], leader[first.setdefault(position, root)]
            if mine != other:
                leader = [other if one == mine else one for one in leader]
    together: dict[int, list[int]] = {}
    for root in range(size):
        together.setdefault(leader[root], []).append(root)
    return list(together.values())


def _is_depthwise(layer: object) -> bool:
    return isinstance(layer, Convolution) and layer.groups == layer.in_channels > 1


def _makes(module: nn.Module, name: str) -> bool:
    """Whether a layer produces new channels; other layers pass on the channels of their input."""
    layer = module.get_submodule(name)
    return isinstance(layer, (Convolution, nn.Linear)) and not _is_depthwise(layer)


def _heads(members: Sequence[Member], module: nn.Module) -> dict[str, int]:
    """Attribute name -> number of heads, for the attributes that count the heads of these channels.

    Channels are treated as heads only if every layer that outputs them belongs to a module that has one of
    these attributes. The output projection of an attention module satisfies this too, but other layers that
    output the same residual channels do not.
    """
    found: dict[str, int] = {}
    for member in members:
        if member.axis != "outputs":
            continue
        owner = member.name.rpartition(".")[0]
        values = vars(module.get_submodule(owner))
        attribute = next((a for a in HEAD_COUNTS if type(values.get(a)) is int), None)
        if attribute is None:
            return {}
        found[f"{owner}.{attribute}".lstrip(".")] = values[attribute]
    return found if len(set(found.values())) == 1 else {}


def _pieces(module: nn.Module, member: Member) -> int:
    """Number of groups into which a layer divides its channels."""
    if isinstance(member.axis, int):
        return 1
    layer = module.get_submodule(member.name)
    if isinstance(layer, nn.GroupNorm):
        return layer.num_groups
    return layer.groups if isinstance(layer, Convolution) and not _is_depthwise(layer) else 1


def _tied(module: nn.Module) -> set[str]:
    """Names of the parameters that have several names, and of the modules that own them."""
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    shared = {name for several in names.values() if len(several) > 1 for name in several}
    return shared | {name.rpartition(".")[0] for name in shared}


def _called_twice(module: nn.Module, inputs: Mapping[str, Tensor]) -> set[str]:
    seen: list[str] = []

    def observe(made: ModuleCall) -> None:
        if has_weights(made.module):
            seen.append(made.name)

    observe_calls(module, inputs, observe)
    return {name for name in seen if seen.count(name) > 1}
