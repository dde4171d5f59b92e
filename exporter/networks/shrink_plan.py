"""The plan of a shrunk network: which channels, blocks and pixels are left of what its factory builds.

A plan is JSON. Factory, plan and `state_dict` give the network back; no pickle is needed, and no library
but torch. Indices always count the channels of the network as the factory builds it, so that a plan says
all there is to say however many rounds led to it.
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
# History of the format. A reader refuses a version it does not know.
# 1: kept indices of modules and bare parameters, dropped modules, whole attributes, resolution.
PLAN_VERSION: Final = 1


def _ascending(indices: tuple[int, ...]) -> tuple[int, ...]:
    if not indices or indices[0] < 0 or any(b <= a for a, b in pairwise(indices)):
        raise ValueError("kept indices are not ascending numbers from 0")
    return indices


Kept = Annotated[tuple[int, ...], AfterValidator(_ascending)]
Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]


class KeptChannels(FrozenModel):
    """What is left of a module; None where a side keeps all of its channels."""

    outputs: Kept | None = None
    inputs: Kept | None = None


class KeptParameter(FrozenModel):
    """What is left of a parameter that belongs to no layer, such as a position embedding."""

    axis: int = Field(ge=0, le=16)
    kept: Kept


class Plan(FrozenModel):
    """How a network differs from the one that its factory builds.

    Attributes:
        modules: module name -> the channels that are left of it.
        parameters: name -> what is left of a parameter that belongs to no layer.
        attributes: dotted name -> new value of a whole number that forward reads, such as `num_heads`.
        dropped: modules that pass their input on unchanged.
        resolution: height and width that pictures are scaled to inside the network, or None.
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
            raise PlanError(path, "is larger than a plan can be", "check the path")
        content = path.read_bytes()
    except OSError as error:
        raise PlanError(path, f"cannot be read ({error.strerror})", "check the path") from error
    try:
        return Plan.model_validate_json(content)
    except ValidationError as error:
        place, cause, fix = explain_validation(error, Plan)
        raise PlanError(f"{path}: {place}", cause, fix) from error


def compose(first: Plan | None, then: Plan) -> Plan:
    """One plan for two: `then` counts what `first` left; the result counts as `first` does."""
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
