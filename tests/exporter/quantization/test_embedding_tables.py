"""Embedding tables in 8 bits."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from exporter.quantization.embedding_tables import MIN_ELEMENTS, quantize_tables

ROWS, COLUMNS = 512, 128


def lookup(table, *, operator="Gather", axis=0, further=()):
    """y = table[ids]."""
    graph = helper.make_graph(
        [helper.make_node(operator, ["table", "ids"], ["y"], name="lookup", axis=axis), *further],
        "g",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, [None, None])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, None, None])],
        [numpy_helper.from_array(table, "table")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def table(rows=ROWS, seed=0):
    generator = np.random.default_rng(seed)
    values = generator.standard_normal((rows, COLUMNS)) * np.exp(generator.normal(size=(rows, 1)))
    return values.astype(np.float32)


def run(model, ids):
    onnx.checker.check_model(model, full_check=True)
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"ids": ids})[0]


@given(seed=st.integers(0, 2**16), where=st.integers(0, ROWS - 1))
def test_the_error_of_each_row_is_at_most_half_its_scale(seed, where):
    content = table(seed=seed)
    content[where] = 0
    model = lookup(content)
    ids = np.random.default_rng(seed).integers(0, ROWS, (3, 7))
    ids[0, 0] = where
    assert quantize_tables(model) == 1
    distance = np.abs(content).max(axis=1, keepdims=True)[ids] / 127
    assert np.all(np.abs(run(model, ids) - content[ids]) <= 0.5001 * distance)


def test_a_table_shrinks_to_a_quarter_of_its_size():
    model = lookup(table())
    before = model.ByteSize()
    quantize_tables(model)
    assert model.ByteSize() < 0.27 * before


def test_a_table_read_twice_is_stored_once():
    second = helper.make_node("Gather", ["table", "ids"], ["z"], name="second")
    model = lookup(table(), further=[second])
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [None, None, None]))
    assert quantize_tables(model) == 1
    assert len(model.graph.initializer) == 2
    assert [n.op_type for n in model.graph.node] == ["Gather", "Cast", "Gather", "Mul"] * 2
    ids = np.arange(8).reshape(2, 4)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    one, other = session.run(None, {"ids": ids})
    assert np.array_equal(one, other)


@pytest.mark.parametrize(
    "model",
    [
        lookup(table(rows=MIN_ELEMENTS // COLUMNS - 1)),
        lookup(table(), axis=1),
        lookup(table(), further=[helper.make_node("Relu", ["table"], ["z"])]),
        lookup(np.arange(ROWS * COLUMNS).reshape(ROWS, COLUMNS)),
        lookup(np.where(table() > 3, np.inf, table()).astype(np.float32)),
    ],
    ids=["small", "columns", "other reader", "integers", "infinite"],
)
def test_other_constants_are_left_alone(model):
    before = model.SerializeToString()
    assert quantize_tables(model) == 0
    assert model.SerializeToString() == before


def test_a_table_that_a_branch_reads_too_stays_in_float():
    model = lookup(table())
    value = helper.make_tensor_value_info("out", TensorProto.FLOAT, [ROWS, COLUMNS])
    bodies = {
        key: helper.make_graph([helper.make_node(operator, ["table"], ["out"])], key, [], [value])
        for key, operator in {"then_branch": "Relu", "else_branch": "Neg"}.items()
    }
    model.graph.node.append(helper.make_node("If", ["c"], ["z"], **bodies))
    model.graph.input.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [ROWS, COLUMNS]))
    onnx.checker.check_model(model, full_check=True)
    before = model.SerializeToString()
    assert quantize_tables(model) == 0
    assert model.SerializeToString() == before
