"""Operators that the placement leaves in float run in float when ONNX Runtime loads the model."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from bench.core.progress import SILENT
from bench.metrics.parity import sqnr_db
from exporter.graphs.index import GraphIndex
from exporter.graphs.inference import open_exact, open_model, session_options
from exporter.graphs.targets import TARGETS
from exporter.quantization.int8 import Int8Settings, quantize_model
from exporter.sources.splits import ArraySamples

RNG = np.random.default_rng(0)
CONV = "Conv<pads = [1, 1, 1, 1]>"
WINDOW = "<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>"
CONSTANTS = {
    "w": RNG.standard_normal((16, 16, 3, 3)) / 12,
    "v": RNG.standard_normal((16, 32, 3, 3)) / 17,
    "m": RNG.standard_normal((16, 16)) / 4,
    "double": [1, 1, 2, 2],
}
INTEGERS = {
    "begin": [1],
    "end": [7],
    "rows": [2],
    "zero": [0],
    "picture": [0, 16, 8, 8],
    "line": [0, 16, 64],
}


def network(body, sample=(16, 8, 8), opset=18):
    sizes = ", ".join(map(str, sample))
    model = onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["" : {opset}]> g (float[N, {sizes}] x) => (float y) {{ {body} }}'
    )
    model.graph.output[0].type.tensor_type.ClearField("shape")
    read = {name for node in model.graph.node for name in node.input}
    for values, kind in ((CONSTANTS, np.float32), (INTEGERS, np.int64)):
        for name in read & values.keys():
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(values[name], kind), name))
    for node in model.graph.node:
        node.name = node.output[0]
    return model


def quantized(model, folder, *, target="x86-avx2", exclude=()):
    """The graph that ONNX Runtime runs, and the SQNR of the int8 file in dB."""
    sample = [axis.dim_value for axis in model.graph.input[0].type.tensor_type.shape.dim[1:]]
    x = RNG.standard_normal((4, *sample)).astype(np.float32)
    settings = Int8Settings(TARGETS[target], exclude=exclude)
    quantize_model(model, folder / "int8.onnx", ArraySamples({"x": x}), settings, progress=SILENT)
    made = onnx.load(folder / "int8.onnx")
    before, after = (open_exact(one).run(None, {"x": x})[0] for one in (model, made))
    options = session_options(1)
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.add_session_config_entry("session.qdqisint8allowed", "1" if target == "arm64" else "0")
    open_model(made, options)
    return onnx.load(folder / "optimized.onnx").graph, sqnr_db(before, after)


def slow_pools(graph):
    """MaxPools that read rounded values as [N, C, H, W]."""
    index = GraphIndex.of(graph)
    return [n for n in graph.node if n.op_type == "MaxPool" and _is_rounded(index, n.input[0])]


def _is_rounded(index, tensor):
    maker = index.maker(tensor)
    while maker is not None and maker.op_type in {"Transpose", "Reshape", "Slice", "Squeeze", "Unsqueeze"}:
        maker = index.maker(maker.input[0])
    return maker is not None and maker.op_type.startswith("Q")


OPERATORS = {
    "AveragePool": f"p = AveragePool{WINDOW}(r)",
    "LeakyRelu": "p = LeakyRelu(r)",
    "Sigmoid": "p = Sigmoid(r)",
    "Mul": "p = Mul(r, c)",
    "Add": "p = Add(r, c)",
    "Concat": "p = Concat<axis = 2>(r, c)",
}
MOVED = {
    "nothing": "q = Identity(p)",
    "MaxPool": f"q = MaxPool{WINDOW}(p)",
    "Transpose": "q = Transpose<perm = [0, 1, 3, 2]>(p)",
    "Slice": "q = Slice(p, begin, end, rows)",
    "Reshape twice": "s = Reshape(p, line)  q = Reshape(s, picture)",
    "Unsqueeze": "s = Unsqueeze(p, zero)  q = Squeeze(s, zero)",
    "two": f"s = Transpose<perm = [0, 1, 3, 2]>(p)  q = MaxPool{WINDOW}(s)",
}


@pytest.mark.parametrize("moved", MOVED)
@pytest.mark.parametrize("operator", OPERATORS)
def test_an_excluded_operator_runs_in_float_past_operators_that_move_values(tmp_path, operator, moved):
    if (operator, moved) == ("Concat", "Reshape twice"):
        pytest.skip("the joined picture has another size")
    model = network(
        f"c = {CONV}(x, w)  r = Relu(c)  {OPERATORS[operator]}  {MOVED[moved]}  y = {CONV}(q, w)"
    )
    if moved == "nothing":
        model.graph.node[-1].input[0] = "p"
        del model.graph.node[-2]
    found, quality = quantized(model, tmp_path, exclude=("p",))
    kinds = Counter(node.op_type for node in found.node)
    assert kinds[f"QLinear{operator}"] == 0
    assert kinds["QLinearConv"] == 2
    assert not slow_pools(found)
    assert quality > 25


@pytest.mark.parametrize("before", ["Transpose<perm = [0, 1, 3, 2]>(r)", "Slice(r, begin, end, rows)"])
def test_an_excluded_operator_runs_in_float_after_operators_that_move_values(tmp_path, before):
    body = f"c = {CONV}(x, w)  r = Relu(c)  t = {before}  p = AveragePool{WINDOW}(t)  y = {CONV}(p, w)"
    found, _ = quantized(network(body), tmp_path, exclude=("p", "t"))
    assert Counter(node.op_type for node in found.node)["QLinearAveragePool"] == 0


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_an_excluded_resize_runs_in_float(tmp_path, mode):
    body = f'c = {CONV}(x, w)  r = Relu(c)  p = Resize<mode = "{mode}">(r, , double)  y = {CONV}(p, w)'
    found, _ = quantized(network(body), tmp_path, exclude=("p",))
    index = GraphIndex.of(found)
    (resize,) = (node for node in found.node if node.op_type == "Resize")
    assert not _is_rounded(index, resize.input[0])


BLOCK = f"c = {CONV}(x, w)  r = Relu(c)"
AFTER = f"p = MaxPool{WINDOW}(s)  y = {CONV}(p, w)"
# Where a MaxPool is, and whether it runs in int8 on [N, H, W, C].
POOLS = {
    "at the start": (f"p = MaxPool{WINDOW}(x)  y = {CONV}(p, w)", False),
    "after a float operator": (f"t = Tanh(x)  p = MaxPool{WINDOW}(t)  y = {CONV}(p, w)", False),
    "after a float operator inside": (f"{BLOCK}  s = Tanh(r)  {AFTER}", False),
    "twice at the start": (f"s = MaxPool{WINDOW}(x)  p = MaxPool{WINDOW}(s)  y = {CONV}(p, w)", False),
    "after a transpose": (
        f"{BLOCK}  t = Transpose<perm = [0, 1, 3, 2]>(r)  p = MaxPool{WINDOW}(t)  y = {CONV}(p, w)", False,
    ),
    "between convolutions": (f"{BLOCK}  p = MaxPool{WINDOW}(r)  y = {CONV}(p, w)", True),
    "after a sum": (f"{BLOCK}  d = {CONV}(r, w)  s = Add(r, d)  {AFTER}", True),
    "after a join": (
        f"{BLOCK}  d = {CONV}(r, w)  s = Concat<axis = 1>(r, d)  {AFTER[:-2]}v)", True,
    ),
    "after a gate": (f"{BLOCK}  g = Sigmoid(c)  s = Mul(c, g)  {AFTER}", True),
    "after LeakyRelu": (f"c = {CONV}(x, w)  s = LeakyRelu(c)  {AFTER}", True),
    "twice": (f"{BLOCK}  s = MaxPool{WINDOW}(r)  {AFTER}", True),
    "at the end": (f"{BLOCK}  y = MaxPool{WINDOW}(r)", True),
}  # fmt: skip


@pytest.mark.parametrize("target", ["x86-vnni", "x86-avx2", "arm64"])
@pytest.mark.parametrize("opset", [13, 18])
@pytest.mark.parametrize("place", POOLS)
def test_a_maxpool_runs_in_int8_only_with_channels_last(tmp_path, place, opset, target):
    body, fast = POOLS[place]
    found, quality = quantized(network(body, opset=opset), tmp_path, target=target)
    assert not slow_pools(found)
    assert (Counter(node.op_type for node in found.node)["NhwcMaxPool"] > 0) == fast
    assert quality > 25


def test_a_maxpool_of_signals_after_a_product_runs_in_float(tmp_path):
    window = "<kernel_shape = [2], pads = [0, 1]>"
    body = f"g = MatMul(x, m)  p = MaxPool{window}(g)  y = MatMul(p, m)"
    found, _ = quantized(network(body, sample=(4, 16)), tmp_path)
    assert not slow_pools(found)
