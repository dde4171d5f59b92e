"""Folding and rewriting: the rules are those of onnxscript, and several threads can run at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxscript import rewriter
from onnxscript.rewriter.rules import common as rules

from exporter.graphs import simplify as simplify_module
from exporter.graphs.inference import open_exact
from exporter.graphs.no_ops import EXACT_NO_OPS
from exporter.graphs.simplify import has_constant_branches, simplify

BLOCKS, CHANNELS = 30, 4


def network(seed):
    """Blocks of Pad, Conv, BatchNormalization, two Relus and two Reshapes; three nodes remain of each."""
    generator = np.random.default_rng(seed)
    weights = {"pads": np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64)}
    for name, shape in (("flat", [-1, CHANNELS, 36]), ("back", [-1, CHANNELS, 6, 6])):
        weights[name] = np.array(shape, np.int64)
    nodes, value = [], "x"
    for block in range(BLOCKS):
        names = [f"{part}{block}" for part in ("w", "gain", "shift", "mean", "variance")]
        weights[names[0]] = generator.standard_normal((CHANNELS, CHANNELS, 3, 3)).astype(np.float32)
        for name in names[1:]:
            weights[name] = generator.random(CHANNELS).astype(np.float32) + 1
        steps = [
            ("Pad", ["pads"], {}),
            ("Conv", names[:1], {}),
            ("BatchNormalization", names[1:], {}),
            ("Relu", [], {}),
            ("Relu", [], {}),
            ("Reshape", ["flat"], {}),
            ("Reshape", ["back"], {}),
        ]
        for index, (op_type, inputs, attributes) in enumerate(steps):
            result = f"v{block}_{index}"
            nodes.append(helper.make_node(op_type, [value, *inputs], [result], name=result, **attributes))
            value = result
    shape = ["n", CHANNELS, 6, 6]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(value, TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(content, name) for name, content in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def simplified(model):
    converted = ir.from_proto(model)
    simplify(converted)
    return ir.to_proto(converted)


def test_pads_norms_and_repetitions_are_removed():
    found = simplified(network(0))
    assert [node.op_type for node in found.graph.node] == BLOCKS * ["Conv", "Relu", "Reshape"]
    onnx.checker.check_model(found, full_check=True)


def test_the_rules_are_those_of_the_optimizer():
    # Neither list is public. This test fails if onnxscript changes its list.
    theirs, ours = rewriter._DEFAULT_REWRITE_RULES, simplify_module._RULES
    assert len(ours) == len(theirs)
    inexact = [*rules.mul_by_1_rule.commute(), *rules.add_0_rule.commute(), rules.sub_0_rule]
    inexact.append(rules.div_by_1_rule)
    pairs = [(mine, other) for mine, other in zip(ours, theirs, strict=True) if mine is not other]
    assert [mine for mine, _ in pairs] == list(EXACT_NO_OPS)
    assert len(pairs) == len(inexact)


NO_OPS = {"Add(x, c)": 0, "Add(c, x)": 0, "Sub(x, c)": 0, "Mul(x, c)": 1, "Mul(c, x)": 1, "Div(x, c)": 1}


@pytest.mark.parametrize("body", NO_OPS)
def test_only_exact_no_operations_are_removed(body):
    exact = NO_OPS[body]
    for number, kept in ((exact, ["Identity"]), (exact + (2.0**-20 if exact else 1e-12), [body[:3]])):
        model = onnx.parser.parse_model(
            f'<ir_version: 9, opset_import: ["" : 20]> g (float[2] x) => (float[2] y)'
            f" <float c = {{{number:.12f}}}> {{ y = {body} }}"
        )
        assert [node.op_type for node in simplified(model).graph.node] == kept


@pytest.mark.parametrize("epsilon", [1e-12, 1e-30])
def test_a_small_number_that_prevents_a_division_by_zero_is_kept(epsilon):
    model = onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["" : 14]> g (float[2, 4] x) => (float[2, 4] y)'
        f" <float e = {{{epsilon}}}> {{"
        " m = ReduceMean<axes = [-1]>(x)  d = Sub(x, m)  q = Mul(d, d)  v = ReduceMean<axes = [-1]>(q)"
        "  a = Add(v, e)  r = Sqrt(a)  y = Div(d, r) }"
    )
    feeds = {"x": np.ones((2, 4), np.float32)}
    assert np.array_equal(open_exact(simplified(model)).run(None, feeds)[0], np.zeros((2, 4)))


@pytest.mark.parametrize("round_", range(3))
def test_threads_do_not_disturb_each_other(round_):
    models = [network(seed) for seed in range(2)]
    alone = [simplified(model).SerializeToString(deterministic=True) for model in models]
    with ThreadPoolExecutor(2) as threads:
        together = list(threads.map(simplified, models))
    assert [model.SerializeToString(deterministic=True) for model in together] == alone


@pytest.mark.parametrize("constant", [True, False])
def test_constant_branches_are_found_and_replaced(constant):
    condition = "c = Constant<value = bool {1}>()" if constant else "c = Cast<to = 9>(s)"
    model = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 20]> g (float[2] x, float s) => (float[2] y) {'
        f"{condition} y = If (c) <then_branch = t () => (float[2] p) {{ p = Neg(x) }},"
        " else_branch = e () => (float[2] q) { q = Abs(x) }> }"
    )
    assert has_constant_branches(ir.from_proto(model)) is constant
    found = simplified(model)
    assert [node.op_type for node in found.graph.node] == (["Neg"] if constant else ["Cast", "If"])
    assert not has_constant_branches(ir.from_proto(found))
