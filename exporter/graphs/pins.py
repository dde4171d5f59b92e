"""Fix open axes of a model's inputs to one size, for a device that needs no other.

With known sizes, more values do not depend on the input and are computed once, and ONNX Runtime fuses more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import onnx

from bench.core.errors import UsageError
from bench.inputs.session import Signature

_OPTION = "--pin"


@dataclass(frozen=True)
class Pin:
    """The size of an axis.

    Attributes:
        axis: name of an open axis, or `input:number` for an axis of an input, counted from 0.
        size: its size.
    """

    axis: str
    size: int


# The sizes of axes of inputs: input name -> axis number -> size.
Sizes = Mapping[str, Mapping[int, int]]


def read_pins(texts: Sequence[str]) -> tuple[Pin, ...]:
    """Read pins of the form `axis=size`.

    Raises:
        UsageError: a text has another form, its size is not a positive integer, or an axis comes twice.
    """
    pins: dict[str, Pin] = {}
    for text in texts:
        axis, _equals, size = (part.strip() for part in text.rpartition("="))
        if not axis or not size.isdecimal() or int(size) < 1:
            raise UsageError(
                _OPTION,
                f"{text!r} does not state an axis and a size",
                "write the name of the axis and a positive integer, for example batch=1",
            )
        if axis in pins:
            raise UsageError(_OPTION, f"axis {axis!r} has two sizes", "state each axis once")
        pins[axis] = Pin(axis, int(size))
    return tuple(pins.values())


def pinned_sizes(signature: Signature, pins: Sequence[Pin]) -> Sizes:
    """The sizes of all axes that pins name. Axes with the same name have the same size.

    Raises:
        UsageError: no input has such an open axis, or two pins give an axis different sizes.
    """
    open_axes: dict[str, list[tuple[str, int]]] = {}
    for spec in signature.inputs:
        for number, size in enumerate(spec.shape):
            if size is None:
                place = (spec.name, number)
                open_axes.setdefault(f"{spec.name}:{number}", []).append(place)
                if number in spec.axes:
                    open_axes.setdefault(spec.axes[number], []).append(place)
    sizes: dict[str, dict[int, int]] = {}
    for pin in pins:
        if pin.axis not in open_axes:
            known = ", ".join(sorted(open_axes))
            raise UsageError(
                _OPTION,
                f"the model's inputs have no open axis {pin.axis!r}",
                f"choose from: {known}" if known else f"leave {_OPTION} out: all axes are fixed",
            )
        for name, number in open_axes[pin.axis]:
            if sizes.setdefault(name, {}).setdefault(number, pin.size) != pin.size:
                raise UsageError(
                    _OPTION, f"axis {number} of input {name!r} has two sizes", "state each axis once"
                )
    return sizes


def pin_signature(signature: Signature, sizes: Sizes) -> Signature:
    """The signature of the model after `pin_inputs`; outputs are not changed."""
    inputs = tuple(
        replace(
            spec,
            shape=tuple(sizes.get(spec.name, {}).get(axis, size) for axis, size in enumerate(spec.shape)),
            axes={axis: name for axis, name in spec.axes.items() if axis not in sizes.get(spec.name, {})},
        )
        for spec in signature.inputs
    )
    return Signature(inputs, signature.outputs)


def pin_inputs(model: onnx.ModelProto, sizes: Sizes) -> None:
    """Fix axes of a model's inputs, in place, and the axes of outputs that have the same names."""
    named: dict[str, int] = {}
    for value in model.graph.input:
        for number, size in sizes.get(value.name, {}).items():
            axis = value.type.tensor_type.shape.dim[number]
            if axis.dim_param:
                named[axis.dim_param] = size
            axis.dim_value = size
    for value in model.graph.output:
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param in named:
                axis.dim_value = named[axis.dim_param]
