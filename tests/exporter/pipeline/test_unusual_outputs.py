"""Models with outputs that they do not compute for themselves alone, or that are not single tensors."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from exporter.errors import ExportError
from exporter.pipeline.quantize_file import quantize_file, quantize_weights_file

GENERATOR = np.random.default_rng(0)
X = GENERATOR.standard_normal((24, 16)).astype(np.float32)
WEIGHT = GENERATOR.standard_normal((16, 16)).astype(np.float32)
TABLE = np.arange(3, dtype=np.float32)
FLOAT = TensorProto.FLOAT
NODES = [
    helper.make_node("MatMul", ["x", "w"], ["h"], name="product"),
    helper.make_node("Relu", ["h"], ["y"], name="relu"),
]


def tensor(name, kind=FLOAT, shape=None):
    return helper.make_tensor_value_info(name, kind, shape)


def optional(name):
    return helper.make_value_info(
        name, helper.make_optional_type_proto(helper.make_tensor_type_proto(FLOAT, None))
    )


SEQUENCE = helper.make_node("SequenceConstruct", ["y", "h"], ["s"])
NAMES = helper.make_tensor("names", TensorProto.STRING, [16], [b"c%d" % n for n in range(16)])
# Case -> nodes after `NODES`, outputs.
CASES = {
    "an input": ([], [tensor("y"), tensor("x")]),
    "an input before the others": ([], [tensor("x"), tensor("y")]),
    "an input twice": ([], [tensor("x"), tensor("y"), tensor("x")]),
    "an output twice": ([], [tensor("y"), tensor("y")]),
    "an inner tensor": ([], [tensor("y"), tensor("h")]),
    "an unused constant": ([], [tensor("y"), tensor("c")]),
    "the weights": ([], [tensor("y"), tensor("w")]),
    "a Constant node": (
        [helper.make_node("Constant", [], ["k"], value_float=2.0)], [tensor("y"), tensor("k")]
    ),
    "a copy of an input": ([helper.make_node("Identity", ["x"], ["i"])], [tensor("y"), tensor("i")]),
    "a copy of an output": ([helper.make_node("Identity", ["y"], ["i"])], [tensor("i"), tensor("y")]),
    "a sequence": ([SEQUENCE], [tensor("y"), helper.make_tensor_sequence_value_info("s", FLOAT, None)]),
    "a sequence alone": ([SEQUENCE], [helper.make_tensor_sequence_value_info("s", FLOAT, None)]),
    "an optional": ([helper.make_node("Optional", ["y"], ["o"])], [tensor("y"), optional("o")]),
    "texts": (
        [
            helper.make_node("ArgMax", ["y"], ["a"], axis=1, keepdims=0),
            helper.make_node("Gather", ["names", "a"], ["t"]),
        ],
        [tensor("y"), tensor("t", TensorProto.STRING)],
    ),
}  # fmt: skip


def written(folder, nodes, outputs, opset=17):
    graph = helper.make_graph(
        [*NODES, *nodes],
        "net",
        [tensor("x", shape=["batch", 16])],
        outputs,
        [
            *(numpy_helper.from_array(value, name) for name, value in {"w": WEIGHT, "c": TABLE}.items()),
            NAMES,
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


def tensors(path):
    """All tensors among the outputs, and the names of the inputs and outputs."""
    session = onnxruntime.InferenceSession(str(path))
    found = [value for output in session.run(None, {"x": X}) for value in _flat(output)]
    return found, [[one.name for one in ends] for ends in (session.get_inputs(), session.get_outputs())]


def _flat(output):
    return output if isinstance(output, list) else [output]


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("case", CASES)
def test_outputs_keep_their_names_and_values(case, bits, tmp_path):
    model, out = written(tmp_path, *CASES[case]), tmp_path / "small.onnx"
    if bits == 8:
        np.savez(tmp_path / "data.npz", x=X)
        quantize_file(model, tmp_path / "data.npz", out, target="x86-avx2", goal="size")
    else:
        quantize_weights_file(model, out, target="x86-avx2")
    (wanted, names), (found, same) = tensors(model), tensors(out)
    assert names == same
    for one, other in zip(wanted, found, strict=True):
        assert one.shape == other.shape
        if one.dtype == np.float32:
            assert np.abs(one - other).max() <= 0.2 * np.abs(one).max()


def test_a_sequence_is_compared_with_float(tmp_path):
    model = written(tmp_path, *CASES["a sequence alone"])
    np.savez(tmp_path / "data.npz", x=X)
    found = quantize_file(
        model, tmp_path / "data.npz", tmp_path / "int8.onnx", target="x86-avx2", goal="size"
    )
    assert found.made.fidelity.output in {"s[0]", "s[1]"}
    assert 20 < found.made.fidelity.sqnr_db < 60


@pytest.mark.parametrize("names", [["product"], ["*"], ["product", "relu"]])
def test_excluding_everything_is_an_error(names, tmp_path):
    model = written(tmp_path, *CASES["an inner tensor"])
    np.savez(tmp_path / "data.npz", x=X)
    with pytest.raises(
        ExportError, match="nothing left to run in int8: its Conv, Gemm and MatMul are excluded"
    ):
        quantize_file(model, tmp_path / "data.npz", tmp_path / "int8.onnx", exclude=tuple(names))
    assert not (tmp_path / "int8.onnx").exists()


def test_warnings_of_the_samples_are_part_of_the_result(tmp_path, command):
    model = written(tmp_path, [], [tensor("y")])
    np.savez(tmp_path / "data.npz", x=np.repeat(X[:1], 24, 0))
    done = command(
        "quantize", model, "--data", tmp_path / "data.npz", "--out", tmp_path / "int8.onnx",
        "--goal", "size", "--json",
    )  # fmt: skip
    assert done.code == 0
    assert "all 24 samples are identical" in json.loads(done.out)["warnings"][0]
