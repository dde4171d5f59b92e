"""Pinned axes: found by name or position, stated by the result, and refused with the known names."""

from __future__ import annotations

import onnx
import pytest

from bench.core.errors import UsageError
from bench.inputs.session import Signature, TensorSpec
from exporter.graphs.pins import Pin, pin_inputs, pin_signature, pinned_sizes, read_pins

SIGNATURE = Signature(
    (
        TensorSpec("ids", "int64", (None, None), {0: "batch", 1: "length"}),
        TensorSpec("mask", "int64", (None, None), {0: "batch", 1: "length"}),
        TensorSpec("x", "float32", (None, 3, None, 8), {0: "batch"}),
    ),
    (),
)


def test_pins_are_read():
    assert read_pins(["batch=1", " a=b = 12"]) == (Pin("batch", 1), Pin("a=b", 12))
    assert read_pins([]) == ()


@pytest.mark.parametrize("text", ["batch", "=1", "batch=", "batch=0", "batch=-1", "batch=1.5", "batch=x"])
def test_other_forms_are_refused(text):
    with pytest.raises(UsageError, match="does not state an axis and a size"):
        read_pins([text])


def test_an_axis_has_one_size():
    with pytest.raises(UsageError, match="axis 'batch' has two sizes"):
        read_pins(["batch=1", "batch=2"])
    with pytest.raises(UsageError, match="axis 1 of input 'ids' has two sizes"):
        pinned_sizes(SIGNATURE, read_pins(["length=4", "ids:1=5"]))
    assert pinned_sizes(SIGNATURE, read_pins(["length=4", "ids:1=4"]))["ids"] == {1: 4}


def test_a_name_stands_for_all_axes_that_have_it():
    sizes = pinned_sizes(SIGNATURE, read_pins(["batch=1", "x:2=7"]))
    assert sizes == {"ids": {0: 1}, "mask": {0: 1}, "x": {0: 1, 2: 7}}
    pinned = pin_signature(SIGNATURE, sizes)
    assert [spec.shape for spec in pinned.inputs] == [(1, None), (1, None), (1, 3, 7, 8)]
    assert pinned.inputs[0].named_shape() == (1, "length")


@pytest.mark.parametrize("name", ["width", "x:1", "x:9", "y:0"])
def test_unknown_axes_are_refused_with_the_known_ones(name):
    with pytest.raises(
        UsageError, match="choose from: batch, ids:0, ids:1, length, mask:0, mask:1, x:0, x:2"
    ):
        pinned_sizes(SIGNATURE, [Pin(name, 1)])


def test_without_open_axes_there_is_nothing_to_pin():
    with pytest.raises(UsageError, match="leave --pin out: all axes are fixed"):
        pinned_sizes(Signature((TensorSpec("x", "float32", (1, 3)),), ()), [Pin("batch", 1)])


def test_inputs_and_outputs_of_the_same_name_are_fixed():
    model = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 20]> g (float[N, 3, L] x, float[N] z) => (float[N, L, K] y)'
        " { y = Transpose(x) }"
    )
    pin_inputs(model, {"x": {0: 2, 2: 5}, "z": {0: 2}})
    shapes = [
        [axis.dim_value or axis.dim_param for axis in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    ]
    assert shapes == [[2, 3, 5], [2], [2, 5, "K"]]
