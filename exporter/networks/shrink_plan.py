"""The plan of a shrunk network: the channels, blocks and resolution that remain of the factory's network.

A plan is JSON. The factory, the plan and the `state_dict` restore the network; this needs no pickle, and no
library except torch. Indices always refer to the channels of the network that the factory builds. One plan
is therefore complete, even if several rounds created it.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field, ValidationError

from bench.core.schema import FrozenModel, explain_validation
from exporter.errors import PlanError

PLAN = "plan.json"
MAX_PLAN_BYTES = 64 * 2**20
MAX_SIDE = 8_192
# History of the format. A reader rejects an unknown version.
# 1: kept indices of modules and of other parameters, dropped modules, integer attributes, resolution.
PLAN_VERSION: Final = 1


def _ascending(indices: tuple[int, ...]) -> tuple[int, ...]:
    if not indices or indices[0] < 0 or any(b <= a for a, b in pairwise(indices)):
        raise ValueError("kept indices must be ascending integers from 0, and at least one")
    return indices


Kept = Annotated[tuple[int, ...], AfterValidator(_ascending)]
Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]


class KeptChannels(FrozenModel):
    """The kept channels of a module; None for a side that keeps all its channels."""

    outputs: Kept | None = None
    inputs: Kept | None = None


class KeptParameter(FrozenModel):
    """The kept indices of a parameter that belongs to no layer, for example a position embedding."""

    axis: int = Field(ge=0, le=16)
    kept: Kept


class Plan(FrozenModel):
    """The differences between a network and the network that its factory builds.

    Attributes:
        version: version of the format.
        modules: module name -> its kept channels.
        parameters: name of a parameter that belongs to no layer -> its kept indices.
        attributes: dotted name of an integer attribute that `forward` reads, for example `num_heads` -> its
            new value.
        dropped: names of modules that return their input unchanged.
        resolution: height and width to which the network scales its pictures, or None.
    """

    version: Literal[1] = PLAN_VERSION
    modules: dict[str, KeptChannels] = Field(default_factory=dict)
    parameters: dict[str, KeptParameter] = Field(default_factory=dict)
    attributes: dict[str, int] = Field(default_factory=dict)
    dropped: tuple[str, ...] = ()
    resolution: tuple[Side, Side] | None = None


def read_plan(path: Path) -> Plan:
    """Read a plan.

    Raises:
        PlanError: it is missing, damaged, or of an unknown version.
    """
    try:
        if path.stat().st_size > MAX_PLAN_BYTES:
            raise PlanError(
                path, f"is larger than {MAX_PLAN_BYTES} bytes, the limit for a plan", "check the path"
            )
        content = path.read_bytes()
    except OSError as error:
        raise PlanError(path, f"cannot be read ({error.strerror})", "check the path") from error
    try:
        return Plan.model_validate_json(content)
    except ValidationError as error:
        place, cause, fix = explain_validation(error, Plan)
        raise PlanError(f"{path}: {place}", cause, fix) from error


def compose(first: Plan | None, then: Plan) -> Plan:
    """Combine two plans into one.

    The indices in `then` refer to the network after `first`. The indices in the result refer to the same
    network as the indices in `first`.
    """
    if first is None:
        return then
    modules = dict(first.modules)
    for name, channels in then.modules.items():
        old = modules.get(name, KeptChannels())
        modules[name] = KeptChannels(
            outputs=_follow(old.outputs, channels.outputs), inputs=_follow(old.inputs, channels.inputs)
        )
    parameters = dict(first.parameters)
    for name, parameter in then.parameters.items():
        kept = parameter.kept
        if name in parameters:
            kept = tuple(parameters[name].kept[index] for index in kept)
        parameters[name] = KeptParameter(axis=parameter.axis, kept=kept)
    return Plan(
        modules=modules,
        parameters=parameters,
        attributes={**first.attributes, **then.attributes},
        dropped=(*first.dropped, *then.dropped),
        resolution=then.resolution or first.resolution,
    )


def _follow(old: Kept | None, new: Kept | None) -> Kept | None:
    if old is None or new is None:
        return old if new is None else new
    return tuple(old[index] for index in new)
