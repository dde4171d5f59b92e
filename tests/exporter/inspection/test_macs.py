"""Multiply-adds of operators, compared with counts by hand. Operators without a count are reported."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from exporter.inspection.audit import audit, coverage_failure, share_text
from exporter.inspection.macs import Call, Work, has_no_macs, work_of
from exporter.inspection.operators_without_macs import WITHOUT_MACS

MICROSOFT = "com.microsoft"


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.fixture
def save(tmp_path):
    """Save a model from `x` to `y`; constants become initializers."""

    def write(nodes, constants, shape, *, opset=18, functions=()):
        graph = helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(value, key) for key, value in constants.items()],
        )
        domains = [
            helper.make_opsetid("", opset),
            helper.make_opsetid(MICROSOFT, 1),
            helper.make_opsetid("local", 1),
        ]
        model = helper.make_model(graph, opset_imports=domains, ir_version=9, functions=list(functions))
        path = tmp_path / "model.onnx"
        onnx.save(model, path)
        return path

    return write


@pytest.mark.parametrize(("kind", "gates"), [("GRU", 3), ("LSTM", 4), ("RNN", 1)])
@pytest.mark.parametrize("directions", [1, 2])
def test_recurrent_layers_are_counted_by_step(save, kind, gates, directions):
    steps, features, hidden = 5, 3, 4
    nodes = [
        helper.make_node(
            kind,
            ["x", "w", "r"],
            ["y"],
            name="memory",
            hidden_size=hidden,
            direction="bidirectional" if directions == 2 else "forward",
        )
    ]
    constants = {
        "w": normal(directions, gates * hidden, features),
        "r": normal(directions, gates * hidden, hidden),
    }
    found = audit(save(nodes, constants, [steps, 1, features]))
    assert found.macs == steps * directions * gates * hidden * (features + hidden)
    (operator,) = found.float_ops
    assert (operator.name, operator.op_type, operator.macs) == ("memory", kind, found.macs)
    assert operator.reason == f"ONNX Runtime has no static int8 kernel for {kind}"
    assert (found.uncounted, found.int8_mac_ratio) == ((), 0.0)


def test_a_constant_on_the_left_is_counted(save):
    nodes = [helper.make_node("MatMul", ["w", "x"], ["y"], name="left")]
    assert audit(save(nodes, {"w": normal(5, 7)}, [7, 3])).macs == 5 * 7 * 3


@pytest.mark.parametrize(
    ("equation", "shapes", "wanted"),
    [
        ("btd,bsd->bts", [(2, 5, 7), (2, 3, 7)], 2 * 5 * 3 * 7),
        ("btd, bsd", [(2, 5, 7), (2, 3, 7)], 2 * 5 * 3 * 7),  # the result has the labels that appear once
        ("...td,...sd->...ts", [(2, 4, 5, 7), (2, 1, 3, 7)], 2 * 4 * 5 * 3 * 7),
        ("ij,jk,kl->il", [(2, 3), (3, 5), (5, 7)], 2 * 3 * 5 + 2 * 5 * 7),
        ("i,i->", [(6,), (6,)], 6),
        ("ijk,jl->il", [(2, 3, 4), (3, 5)], 2 * 3 * 5),  # k is summed first, without multiplications
        ("ij,ij->ij", [(2, 3), (2, 3)], 0),
        ("i,j->ij", [(2,), (3,)], 0),
        ("ij->ji", [(2, 3)], 0),
        ("ii->i", [(3, 3)], 0),
    ],
)
def test_einsum_is_counted_join_by_join(equation, shapes, wanted):
    node = helper.make_node("Einsum", [f"x{i}" for i in range(len(shapes))], ["y"], equation=equation)
    assert work_of(node, Call(tuple(shapes), ((),))) == Work(0, wanted)


def test_einsum_is_counted_as_it_runs(save):
    nodes = [helper.make_node("Einsum", ["x", "w"], ["y"], name="mix", equation="ntd,ed->nte")]
    found = audit(save(nodes, {"w": normal(5, 7)}, ["N", 3, 7]))
    assert [(o.name, o.macs) for o in found.float_ops] == [("mix", 3 * 5 * 7)]


def test_onnx_attention_is_counted(save):
    nodes = [helper.make_node("Attention", ["x"] * 3, ["y"], name="a", q_num_heads=2, kv_num_heads=2)]
    assert audit(save(nodes, {}, ["N", 5, 8], opset=23)).macs == 2 * 5 * 5 * 8


def test_attention_over_earlier_keys_is_counted_over_all_of_them():
    node = helper.make_node("Attention", ["q", "k", "v", "", "pk", "pv"], ["y"])
    call = Call(
        ((1, 2, 3, 4), (1, 2, 3, 4), (1, 2, 3, 6), None, (1, 2, 5, 4), (1, 2, 5, 6)), ((1, 2, 3, 6),)
    )
    assert work_of(node, call) == Work(0, 2 * 3 * (3 + 5) * (4 + 6))


def test_fused_attention_is_counted_with_its_projections(save):
    nodes = [helper.make_node("Attention", ["x", "w", "b"], ["y"], name="a", domain=MICROSOFT, num_heads=2)]
    found = audit(save(nodes, {"w": normal(6, 24), "b": normal(24)}, ["N", 5, 6]))
    assert found.macs == 5 * 6 * 24 + 2 * 5 * 5 * 8
    assert found.int8_macs == 0


def test_multi_head_attention_is_counted(save):
    nodes = [
        helper.make_node("MultiHeadAttention", ["x"] * 3, ["y"], name="a", domain=MICROSOFT, num_heads=2)
    ]
    assert audit(save(nodes, {}, ["N", 5, 8])).macs == 2 * 5 * 5 * 8


@pytest.mark.parametrize(
    ("shapes", "keys", "queries"),
    [
        (((1, 5, 2, 3, 4),), 5, 5 * 8),  # queries, keys and values in one tensor
        (((1, 5, 8), (1, 7, 2, 2, 4)), 7, 5 * 8),  # keys and values in one tensor
        (((1, 5, 8), (1, 2, 7, 4), (1, 2, 7, 4)), 7, 5 * 8),  # keys and values [N, heads, T, D]
        (((1, 5, 8), (1, 7, 8), (1, 7, 8), None, None, None, (1, 2, 9, 4)), 16, 5 * 8),  # earlier keys
    ],
)
def test_all_forms_of_multi_head_attention(shapes, keys, queries):
    node = helper.make_node("MultiHeadAttention", ["x"] * len(shapes), ["y"], domain=MICROSOFT, num_heads=2)
    assert work_of(node, Call(shapes, ((1, 5, 8),))) == Work(0, keys * (queries + 5 * 8))


def test_only_the_projections_of_quantized_attention_are_int8(save):
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node(
            "QAttention",
            ["q", "w", "b", "s", "s", "", "z", "wz"],
            ["y"],
            name="a",
            domain=MICROSOFT,
            num_heads=2,
        ),
    ]
    constants = {
        "s": np.float32(0.1),
        "z": np.uint8(128),
        "wz": np.int8(0),
        "w": np.ones((6, 24), np.int8),
        "b": normal(24),
    }
    found = audit(save(nodes, constants, ["N", 5, 6]))
    assert (found.int8_macs, found.macs) == (5 * 6 * 24, 5 * 6 * 24 + 2 * 5 * 5 * 8)
    assert [(o.name, o.macs, o.reason) for o in found.float_ops] == [
        ("a", 2 * 5 * 5 * 8, "its projections run in int8, but the products of its activations do not")
    ]


def test_a_dynamically_quantized_lstm_is_int8(save):
    nodes = [
        helper.make_node(
            "DynamicQuantizeLSTM",
            ["x", "w", "r", "", "", "", "", "", "s", "z", "s", "z"],
            ["y"],
            name="memory",
            domain=MICROSOFT,
            hidden_size=4,
        )
    ]
    constants = {
        "w": np.ones((1, 3, 16), np.int8),
        "r": np.ones((1, 4, 16), np.int8),
        "s": np.full(1, 0.01, np.float32),
        "z": np.zeros(1, np.int8),
    }
    found = audit(save(nodes, constants, [5, 1, 3]))
    assert (found.macs, found.int8_mac_ratio) == (5 * 16 * (3 + 4), 1.0)


@pytest.mark.parametrize(
    ("stated", "left", "wanted"),
    [
        ({}, (2, 3, 7), 7),
        ({"transA": 1}, (2, 7, 3), 7),
        ({"transA": 1, "transBatchA": 1}, (7, 2, 3), 7),
    ],
)
def test_transposed_left_matrices(stated, left, wanted):
    node = helper.make_node("FusedMatMul", ["a", "b"], ["y"], domain=MICROSOFT, **stated)
    assert work_of(node, Call((left, (2, 7, 5)), ((2, 3, 5),))) == Work(0, 2 * 3 * 5 * wanted)


@pytest.mark.parametrize(("level", "wanted"), [(4, Work(21, 0)), (0, Work(0, 21)), (None, Work(0, 21))])
def test_packed_weights_are_int8_only_if_the_kernel_rounds_activations(level, wanted):
    stated = {} if level is None else {"accuracy_level": level}
    node = helper.make_node("MatMulNBits", ["a", "b", "s"], ["y"], domain=MICROSOFT, K=7, N=3, **stated)
    assert work_of(node, Call(((1, 7), (3, 1, 4), (3,)), ((1, 3),))) == wanted


@pytest.mark.parametrize("domain", [MICROSOFT, "com.ms.internal.nhwc"])
def test_quantized_transposed_convolutions_are_int8(domain):
    node = helper.make_node("QLinearConvTranspose", ["x", "s", "z", "w"], ["y"], domain=domain)
    call = Call(((1, 2, 4, 4), (), (), (2, 3, 2, 2)), ((1, 3, 8, 8),))
    assert work_of(node, call) == Work(2 * 4 * 4 * 3 * 2 * 2, 0)


def test_affine_grids_are_counted():
    node = helper.make_node("AffineGrid", ["theta", "size"], ["y"])
    assert work_of(node, Call(((1, 2, 3), (4,)), ((1, 5, 6, 2),))) == Work(0, 5 * 6 * 2 * 3)


def loop(trips_input):
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["v", "w"], ["v2"], name="inner"),
            helper.make_node("Identity", ["c"], ["c2"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", TensorProto.FLOAT, [None, 7]),
        ],
        [
            helper.make_tensor_value_info("c2", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v2", TensorProto.FLOAT, [None, 7]),
        ],
    )
    return helper.make_node("Loop", [trips_input, "", "x"], ["y"], name="repeat", body=body)


def test_a_loop_is_counted_once_per_iteration(save):
    found = audit(save([loop("trips")], {"w": normal(7, 7), "trips": np.int64(5)}, ["N", 7]))
    assert (found.macs, found.uncounted) == (5 * 7 * 7, ())
    (operator,) = found.float_ops
    assert (operator.name, operator.reason) == (
        "inner",
        "it is in the body of Loop 'repeat', which is not quantized",
    )
    assert (found.operators["MatMul"], found.operators["Loop"]) == (1, 1)


def test_operators_that_did_not_run_have_no_count(save):
    found = audit(save([loop("trips")], {"w": normal(7, 7), "trips": np.int64(0)}, ["N", 7]))
    assert [(one.name, one.op_type) for one in found.uncounted] == [("inner", "MatMul")]
    assert found.uncounted[0].reason == "it is in a branch or loop that did not run on the samples"


def test_operators_in_local_functions_are_counted(save):
    inside = [
        helper.make_node("Transpose", ["a"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["a", "t"], ["o"]),
    ]
    function = helper.make_function("local", "Gram", ["a"], ["o"], inside, [helper.make_opsetid("", 18)])
    path = save([helper.make_node("Gram", ["x"], ["y"], domain="local")], {}, [3, 7], functions=[function])
    assert (audit(path).macs, audit(path).uncounted) == (3 * 3 * 7, ())


@pytest.mark.parametrize(
    ("stated", "signal", "result", "axis", "wanted"),
    [
        ({}, (1, 8, 1), (1, 8, 2), None, 8 * 8 * 2),
        ({"onesided": 1}, (1, 8, 1), (1, 5, 2), None, 5 * 8 * 2),
        ({"onesided": 1}, (1, 9, 1), (1, 5, 2), None, 5 * 9 * 2),
        ({}, (1, 8, 2), (1, 8, 2), None, 8 * 8 * 4),
        ({"axis": 2}, (1, 3, 8, 1), (1, 3, 8, 2), None, 3 * 8 * 8 * 2),
        ({"axis": 1}, (1, 3, 8, 1), (1, 3, 8, 2), None, 8 * 3 * 3 * 2),
        ({}, (1, 3, 8, 1), (1, 3, 8, 2), 1, 8 * 3 * 3 * 2),
        ({}, (1, 8, 1), (1, 16, 2), None, 16 * 16 * 2),  # padded to 16 samples
        ({"onesided": 1}, (1, 8, 1), (1, 9, 2), None, 9 * 16 * 2),
        ({"inverse": 1}, (1, 8, 2), (1, 8, 2), None, 8 * 8 * 4),
        ({"inverse": 1, "onesided": 1}, (1, 5, 2), (1, 8, 1), None, 8 * 5 * 2),
    ],
)
def test_fourier_transforms_are_counted_as_products(stated, signal, result, axis, wanted):
    inputs = ["x"] if axis is None else ["x", "", "axis"]
    node = helper.make_node("DFT", inputs, ["y"], **stated)
    shapes = (signal,) if axis is None else (signal, None, ())
    call = Call(shapes, (result,), () if axis is None else (None, None, axis))
    assert work_of(node, call) == Work(0, wanted)


def test_a_fourier_transform_over_an_unknown_axis_has_no_count():
    node = helper.make_node("DFT", ["x", "", "axis"], ["y"])
    assert work_of(node, Call(((1, 3, 8, 1), None, ()), ((1, 3, 8, 2),), (None, None, None))) is None


@pytest.mark.parametrize("opset", [17, 20])
@pytest.mark.parametrize("as_node", [False, True])
def test_fourier_transforms_are_counted_as_they_run(save, opset, as_node):
    constants = {} if as_node else {"axis": np.int64(2)}
    axis = [helper.make_node("Constant", [], ["axis"], value=numpy_helper.from_array(np.int64(2)))]
    inputs = {"inputs": ["x"], "axis": 2} if opset == 17 else {"inputs": ["x", "", "axis"]}
    nodes = [*(axis if as_node else []), helper.make_node("DFT", outputs=["y"], name="s", **inputs)]
    found = audit(save(nodes, {} if opset == 17 else constants, ["N", 3, 8, 1], opset=opset))
    assert (found.macs, found.uncounted) == (3 * 8 * 8 * 2, ())


@pytest.mark.parametrize(("window", "onesided"), [(True, 1), (True, 0), (False, 1)])
def test_short_time_fourier_transforms_are_counted_by_frame(save, window, onesided):
    inputs = ["x", "step", "window"] if window else ["x", "step", "", "length"]
    nodes = [helper.make_node("STFT", inputs, ["y"], name="s", onesided=onesided)]
    length = {"window": np.hanning(16).astype(np.float32)} if window else {"length": np.int64(16)}
    found = audit(save(nodes, {"step": np.int64(8), **length}, ["N", 80, 1]))
    assert found.macs == 9 * (9 if onesided else 16) * 16 * 2
    assert [(one.name, one.op_type) for one in found.float_ops] == [("s", "STFT")]


def test_grouped_attention_is_counted_over_all_keys():
    node = helper.make_node("GroupQueryAttention", ["q", "k", "v"], ["y", "pk", "pv"], domain=MICROSOFT)
    call = Call(((1, 3, 8), (1, 3, 4), (1, 3, 4)), ((1, 3, 8), (1, 1, 7, 4), (1, 1, 7, 4)))
    assert work_of(node, call) == Work(0, 2 * 7 * 3 * 8)


def test_only_the_chosen_experts_are_counted():
    node = helper.make_node("MoE", ["x", "r", "w1", "", "w2"], ["y"], domain=MICROSOFT, k=2)
    call = Call(((1, 3, 8), (3, 4), (4, 8, 16), None, (4, 16, 8)), ((1, 3, 8),))
    assert work_of(node, call) == Work(0, 3 * 2 * (8 * 16 + 16 * 8))


def test_linear_models_and_distances_are_counted():
    linear = helper.make_node("LinearRegressor", ["x"], ["y"], domain="ai.onnx.ml", coefficients=[1.0] * 14)
    assert work_of(linear, Call(((3, 7),), ((3, 2),))) == Work(0, 3 * 14)
    distances = helper.make_node("CDist", ["a", "b"], ["y"], domain=MICROSOFT)
    assert work_of(distances, Call(((3, 7), (5, 7)), ((3, 5),))) == Work(0, 3 * 5 * 7)


@pytest.fixture
def half_known(save):
    """A float product, and a determinant, for which there is no formula."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="product"),
        helper.make_node("Det", ["h"], ["y"], name="volume"),
    ]
    return save(nodes, {"w": normal(2, 2)}, ["N", 2, 2])


def test_an_operator_without_formula_makes_the_share_an_upper_bound(half_known):
    found = audit(half_known)
    assert [(one.name, one.op_type) for one in found.uncounted] == [("volume", "Det")]
    assert share_text(found) == (
        "at most 0.0% of 8 multiply-adds run in int8: "
        "Det 'volume' is not counted (no formula for its multiply-adds is known)"
    )
    assert json.loads(found.model_dump_json())["uncounted"] == [
        {"name": "volume", "op_type": "Det", "reason": "no formula for its multiply-adds is known"}
    ]


def test_an_upper_bound_meets_no_minimum(half_known):
    wholly = audit(half_known).model_copy(update={"int8_mac_ratio": 1.0})
    assert coverage_failure(wholly, 0.0) is None
    assert coverage_failure(wholly, 0.95) == (
        "at most 100.0% of multiply-adds run in int8, at least 95.0% required; "
        "Det 'volume' is not counted (no formula for its multiply-adds is known)"
    )
    assert "1 operator stays in float, the largest is product" in coverage_failure(audit(half_known), 0.95)


def test_several_uncounted_operators_are_reported_in_one_line(half_known):
    found = audit(half_known)
    three = found.model_copy(update={"uncounted": found.uncounted * 3})
    assert share_text(three).endswith("; 2 more are not counted")
    assert coverage_failure(three, 0.5).count("\n") == 0


def test_the_share_is_unknown_if_nothing_is_counted(save):
    found = audit(save([helper.make_node("Det", ["x"], ["y"], name="s")], {}, ["N", 8, 8]))
    assert share_text(found).startswith("the fraction in int8 is unknown: Det 's' is not counted")


def test_operators_of_other_domains_are_unknown_whatever_their_name():
    assert has_no_macs(helper.make_node("Add", ["a", "b"], ["y"]))
    foreign = helper.make_node("Add", ["a", "b"], ["y"], domain="vendor")
    assert not has_no_macs(foreign)
    assert work_of(foreign, Call(((1,), (1,)), ((1,),))) is None
    assert work_of(helper.make_node("MatMul", ["a", "b"], ["y"], domain="vendor"), Call((), ())) is None


def test_a_formula_without_a_required_shape_returns_no_count():
    node = helper.make_node("Conv", ["x", "w"], ["y"])
    assert work_of(node, Call(((1, 2, 3, 3), None), ((1, 2, 3, 3),))) is None


def test_multiplying_operators_are_not_listed():
    suspects = {"Conv", "Gemm", "MatMul", "Attention", "Einsum", "GRU", "LSTM", "RNN", "DFT", "STFT", "MoE"}
    suspects |= {"GroupQueryAttention", "QMoE", "LinearClassifier", "SVMClassifier", "CDist", "Inverse"}
    assert not suspects & frozenset().union(*WITHOUT_MACS.values())


def test_every_listed_operator_of_onnx_exists():
    known = {(schema.domain, schema.name) for schema in onnx.defs.get_all_schemas_with_history()}
    listed = {(domain, name) for domain in ("", "ai.onnx.ml") for name in WITHOUT_MACS[domain]}
    assert listed - known == {("", "SimplifiedLayerNormalization")}  # ONNX Runtime's, in ONNX's domain
