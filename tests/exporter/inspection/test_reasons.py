"""The reasons for operators in float are the true ones."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from exporter.graphs.float_reasons import METADATA_KEY, reasons_metadata, stated_reasons
from exporter.inspection.audit import audit
from exporter.pipeline.quantize_file import quantize_file, quantize_weights_file
from exporter.quantization.int8_repaired import RepairSettings
from exporter.recipes import FallbackConfig


@pytest.fixture
def reasons(tmp_path):
    """Quantize a model in ONNX's text form, and return the reasons of its operators in float."""

    def find(nodes, weights, shape=(6, 8), *, opset=18, **options):
        axes = ", ".join(["N", *map(str, shape)])
        model = onnx.parser.parse_model(
            f'<ir_version: 9, opset_import: ["" : {opset}]> g (float[{axes}] x) => (float y) {{ {nodes} }}'
        )
        model.graph.output[0].type.tensor_type.ClearField("shape")
        generator = np.random.default_rng(0)
        for name, size in weights.items():
            values = generator.standard_normal(size).astype(np.float32)
            model.graph.initializer.append(numpy_helper.from_array(values, name))
        onnx.save(model, tmp_path / "float.onnx")
        np.savez(tmp_path / "x.npz", x=generator.standard_normal((32, *shape)).astype(np.float32))
        quantize_file(tmp_path / "float.onnx", tmp_path / "x.npz", tmp_path / "int8.onnx", **options)
        return {one.name: one.reason for one in audit(tmp_path / "int8.onnx").float_ops}

    return find


LEFT = "its constant is on the left, and only constants on the right are quantized"
FIRST = "[first] h = MatMul(x, w1)  [act] g = Tanh(h)  "
FORMS = {
    "two activations": (
        FIRST + "t = Transpose<perm = [0, 2, 1]>(g)  [other] y = MatMul(g, t)",
        {},
        "it multiplies two activations, which are not quantized: 8 bits cost attention much accuracy",
    ),
    "einsum": (
        FIRST + '[other] y = Einsum<equation = "btd,hdk->bhtk">(g, w2)',
        {"w2": (2, 8, 3)},
        "ONNX Runtime has no static int8 kernel for Einsum",
    ),
    "recurrent": (
        FIRST + "[other] y = GRU<hidden_size = 4>(g, w2, w3)",
        {"w2": (1, 12, 8), "w3": (1, 12, 4)},
        "ONNX Runtime has no static int8 kernel for GRU",
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_the_form_of_an_operator(reasons, name):
    nodes, weights, wanted = FORMS[name]
    assert reasons(nodes, {"w1": (8, 8), **weights}) == {"other": wanted}


NODES = "[one] a = MatMul(x, w1)  [act] r = Tanh(a)  [two] b = MatMul(r, w2)  [end] y = Tanh(b)"
MATRICES = {"w1": (8, 8), "w2": (8, 8)}


def test_excluded_operators(reasons):
    assert reasons(NODES, MATRICES, exclude=("two",)) == {"two": "it is excluded by name"}
    assert reasons(NODES, MATRICES) == {}


def test_operators_that_the_accuracy_budget_keeps_in_float(reasons):
    budget = RepairSettings((), FallbackConfig(max_drop=0.0, min_sqnr_db=60.0))
    found = reasons(NODES, MATRICES, exclude=("two",), repairs=budget)
    assert found == {
        "one": "it was left in float to meet the accuracy budget",
        "two": "it is excluded by name",
    }


def test_four_bits_state_the_reason_too(reasons, tmp_path):
    reasons(NODES, {"w1": (8, 64), "w2": (64, 64)})
    out = tmp_path / "int4.onnx"
    quantize_weights_file(tmp_path / "float.onnx", out, exclude=("two",))
    assert {one.name: one.reason for one in audit(out).float_ops}["two"] == "it is excluded by name"


def test_stated_reasons_are_read_back():
    model = onnx.ModelProto()
    assert stated_reasons(model) == {}
    assert reasons_metadata({}) == {}
    (entry,) = reasons_metadata({"a": "because"}).items()
    model.metadata_props.add(key=entry[0], value=entry[1])
    assert stated_reasons(model) == {"a": "because"}


@pytest.mark.parametrize("damaged", ["", "{", "[1]", "7"])
def test_damaged_reasons_are_ignored(damaged):
    model = onnx.ModelProto()
    model.metadata_props.add(key=METADATA_KEY, value=damaged)
    assert stated_reasons(model) == {}


@pytest.mark.parametrize(
    ("product", "shapes", "wanted"),
    [
        ("MatMul(k, x)", (4, 6), LEFT),
        ("MatMul(x, k)", (5, 8, 3), "its weights have rank 3, and only matrices are quantized"),
        ("MatMul(x, k)", (8, 3), "it was not quantized"),
    ],
)
def test_the_place_and_rank_of_a_constant(tmp_path, product, shapes, wanted):
    """Of a float model, so that the reasons do not depend on what the quantizer takes."""
    model = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 18]> g (float[N, 6, 8] x) => (float y)'
        f" {{ [product] y = {product} }}"
    )
    if len(shapes) == 3:
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = shapes[0]
    model.graph.output[0].type.tensor_type.ClearField("shape")
    model.graph.initializer.append(numpy_helper.from_array(np.ones(shapes, np.float32), "k"))
    onnx.save(model, tmp_path / "float.onnx")
    assert [one.reason for one in audit(tmp_path / "float.onnx").float_ops] == [wanted]
