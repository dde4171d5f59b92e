"""An int8 model whose outputs do not match those of the given file is not written."""

from __future__ import annotations

import re

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from bench.core.errors import ModelError
from bench.inputs.session import open_session, signature_of
from exporter.errors import ExportError
from exporter.graphs.stale_shapes import forget_stale_shapes
from exporter.inspection.same_outputs import (
    answers_of,
    check_same_outputs,
    check_same_values,
    few_samples,
    made_up_samples,
)


def save(path, nodes, outputs, *, inputs=None, constants=None, opset=17):
    inputs = inputs or [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])]
    graph = helper.make_graph(
        nodes,
        "g",
        inputs,
        [onnx.ValueInfoProto(name=o) if isinstance(o, str) else o for o in outputs],
        [numpy_helper.from_array(value, name) for name, value in (constants or {}).items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), path)
    return path


def tensor(name, kind=TensorProto.FLOAT, shape=None):
    return helper.make_tensor_value_info(name, kind, shape)


@pytest.fixture
def given(tmp_path):
    """A model that returns `x`, and whether each of its values is above zero."""
    nodes = [
        helper.make_node("Identity", ["x"], ["y"]),
        helper.make_node("Greater", ["x", "zero"], ["above"]),
    ]
    return save(
        tmp_path / "given.onnx",
        nodes,
        [tensor("y", shape=["n", 4]), tensor("above", TensorProto.BOOL, ["n", 4])],
        constants={"zero": np.float32(0)},
    )


@pytest.fixture
def answers(given):
    x = np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4)
    return answers_of(given, [{"x": x}, {"x": x[:1]}])


IDENTITY, ABOVE = ("Identity", ["x"], ["y"]), ("Greater", ["x", "zero"], ["above"])


OUTPUTS = {"y": TensorProto.FLOAT, "z": TensorProto.FLOAT, "above": TensorProto.BOOL}


@pytest.mark.parametrize(
    ("nodes", "outputs", "words"),
    [
        ([IDENTITY], "y", "the outputs are ['y'] in the quantized model, but ['y', 'above'] in"),
        ([("Identity", ["x"], ["z"]), ABOVE], "z above", "['z', 'above'] in the quantized model, but ['y"),
        ([IDENTITY, ABOVE], "above y", "['above', 'y'] in the quantized model, but ['y', 'above'] in"),
        ([("Identity", ["x"], ["above"]), IDENTITY], "y above", "output 'above' is float32 [2, 4] in the"),
        ([("Reshape", ["x", "flat"], ["y"]), ABOVE], "y above", "output 'y' is float32 [8] in the"),
        ([("Reshape", ["x", "baked"], ["y"]), ABOVE], "y above", "the quantized model fails when it runs"),
        ([("Sqrt", ["x"], ["y"]), ABOVE], "y above", "output 'y' is NaN or infinite in the quantized"),
    ],
)  # fmt: skip
def test_the_difference_is_named(given, answers, nodes, outputs, words):
    types = OUTPUTS | ({"above": TensorProto.FLOAT} if ABOVE not in nodes else {})
    made = save(
        given.with_name("made.onnx"),
        [helper.make_node(*node) for node in nodes],
        [tensor(name, types[name]) for name in outputs.split()],
        constants={"zero": np.float32(0), "flat": np.array([-1]), "baked": np.array([2, 4])},
    )
    with pytest.raises(ExportError, match=re.escape(words)) as caught:
        check_same_outputs(given, answers, made)
    assert str(caught.value).startswith(f"{given}: ")
    assert "nothing was written" in caught.value.fix


def test_equal_outputs_pass_and_so_does_infinity_in_both(tmp_path, given, answers):
    check_same_outputs(given, answers, given)
    log = save(tmp_path / "log.onnx", [helper.make_node("Log", ["x"], ["y"])], [tensor("y")])
    zeros = [{"x": np.zeros((1, 4), np.float32)}]
    check_same_outputs(log, answers_of(log, zeros), log)


def test_a_batch_and_a_single_sample_are_run():
    found = few_samples({"x": np.zeros((9, 4), np.float32)}, None)
    assert [batch["x"].shape for batch in found] == [(8, 4), (1, 4), (1, 4)]


def test_fixed_batches_are_run_only_as_a_whole():
    found = few_samples({"x": np.zeros((6, 4), np.float32)}, 3)
    assert [batch["x"].shape for batch in found] == [(3, 4), (3, 4)]


def test_without_samples_dynamic_axes_get_a_size(tmp_path):
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", "length", 4])]
    model = save(
        tmp_path / "m.onnx", [helper.make_node("Relu", ["x"], ["y"])], [tensor("y")], inputs=inputs
    )
    (feeds,) = made_up_samples(model, signature_of(open_session(model)))
    assert feeds["x"].shape == (1, 8, 4)


def test_a_file_that_does_not_run_on_its_samples_is_an_error(tmp_path):
    model = save(
        tmp_path / "m.onnx",
        [helper.make_node("Reshape", ["x", "to"], ["y"])],
        [tensor("y")],
        constants={"to": np.array([3, 3])},
    )
    with pytest.raises(ModelError, match="fails when it runs"):
        answers_of(model, [{"x": np.ones((1, 4), np.float32)}])


def recognizer(path, opset, stated):
    """A text recognition network in a form that exporters write.

    The output has three axes, even if the file states another shape.
    """
    generator = np.random.default_rng(0)
    constants = {
        "w": (generator.standard_normal((16, 1, 3, 3)) * 0.3).astype(np.float32),
        "f": (generator.standard_normal((128, 20)) * 0.1).astype(np.float32),
        "zero": np.array([0]), "one": np.array([1]), "rest": np.array([-1]),
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv", pads=[1] * 4, strides=[2, 2]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Transpose", ["r"], ["t"], perm=[3, 0, 1, 2]),
        helper.make_node("Shape", ["t"], ["size"]),
        helper.make_node("Gather", ["size", "zero"], ["length"]),
        helper.make_node("Concat", ["length", "one", "rest"], ["to"], axis=0),
        helper.make_node("Reshape", ["t", "to"], ["q"]),
        helper.make_node("MatMul", ["q", "f"], ["z"], name="head"),
        helper.make_node("Shape", ["z"], ["same"]),
        helper.make_node("Reshape", ["z", "same"], ["y"]),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 16, "width"])]
    return save(path, nodes, [tensor("y", shape=stated)], inputs=inputs, constants=constants, opset=opset)


def changed(model, factor):
    """The model with its first constant multiplied."""
    copy = onnx.load(model)
    (weight,) = (tensor for tensor in copy.graph.initializer if tensor.name == "w")
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(factor), "w"))
    return copy


@pytest.mark.parametrize("factor", [1.0, 1.0001, 1.2])
def test_another_function_is_not_quantized(tmp_path, factor):
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    constants = {"w": np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)}
    model = save(tmp_path / "m.onnx", nodes, [tensor("y")], constants=constants)
    answers = answers_of(
        model, [{"x": np.random.default_rng(1).standard_normal((2, 4)).astype(np.float32)}]
    )
    if factor < 1.1:
        check_same_values(model, answers, changed(model, factor))
        return
    with pytest.raises(ExportError, match="output 'y' has an SQNR of 14 dB after exact rewrites in float"):
        check_same_values(model, answers, changed(model, factor))


def test_values_that_are_not_compared(tmp_path):
    """Infinite values, numbers that stand for infinity, rounding of zero, classes, and random numbers."""
    nodes = [
        helper.make_node("Mul", ["x", "w"], ["y"]),
        helper.make_node("ArgMax", ["x"], ["c"], axis=1),
    ]
    outputs = [tensor("y"), tensor("c", TensorProto.INT64)]
    constants = {"w": np.float32([1e-9, 1.0, 3e30, np.inf])}
    model = save(tmp_path / "m.onnx", nodes, outputs, constants=constants)
    answers = answers_of(model, [{"x": np.float32([[1, 1, 1, 1]])}])
    other = changed(model, 1)
    other.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.float32([2e-9, 1, 2e30, np.inf]), "w"))
    check_same_values(model, answers, other)
    noisy = changed(model, 1)
    noisy.graph.node.append(helper.make_node("RandomNormalLike", ["x"], ["noise"]))
    noisy.graph.node.append(helper.make_node("Add", ["noise", "noise"], ["more"]))
    noisy.graph.output[0].name = "more"
    check_same_values(model, answers, noisy)


def test_a_rewritten_network_that_fails_is_an_error(given, answers):
    broken = onnx.load(given)
    broken.graph.node[0].op_type = "Magic"
    with pytest.raises(ExportError, match="its rewritten float form fails"):
        check_same_values(given, answers, broken)


@pytest.fixture
def pictures(tmp_path):
    x = np.random.default_rng(1).standard_normal((16, 1, 16, 48)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    return tmp_path / "x.npz"


def shape_of(model, width):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": np.ones((1, 1, 16, width), np.float32)})[0].shape


@pytest.mark.parametrize("opset", [9, 11, 13, 14, 17, 20])
@pytest.mark.parametrize(
    "stated", [(1, "steps"), (24, 1, 21), (1, 1, 20), ("a", "b", "c"), (24, 1, 20)], ids=str
)
def test_wrong_shapes_in_the_file_are_not_trusted(pictures, command, opset, stated):
    """A stated shape that is correct only for the samples is not trusted either: the width can change."""
    given, out = pictures.with_name("m.onnx"), pictures.with_name("int8.onnx")
    recognizer(given, opset, stated)
    ran = command("quantize", given, "--data", pictures, "--out", out)
    assert ran.code == 0, ran.err
    for width in (48, 64):
        assert shape_of(out, width) == shape_of(given, width) == (width // 2, 1, 20)


def test_nothing_is_written_if_outputs_differ(pictures, tmp_path, command, monkeypatch):
    """An existing output file is kept, whatever the reason of the difference."""
    path = recognizer(tmp_path / "m.onnx", 17, (1, "steps"))
    monkeypatch.setattr("exporter.pipeline.quantize_file.forget_stale_shapes", lambda *_: None)
    out = tmp_path / "int8.onnx"
    out.write_bytes(b"an earlier model")
    ran = command("quantize", path, "--data", pictures, "--out", out)
    assert ran.code == 2
    assert ran.err.splitlines()[-1].startswith(f"error: {path}: output 'y' is float32 [")
    assert out.read_bytes() == b"an earlier model"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["int8.onnx", "m.onnx", "x.npz"]


def test_4_bit_models_are_checked_too(tmp_path, command, monkeypatch):
    generator = np.random.default_rng(0)
    path = save(
        tmp_path / "m.onnx",
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")],
        [tensor("y", shape=["n", 64])],
        constants={"w": generator.standard_normal((4, 64)).astype(np.float32)},
    )
    assert command("quantize", path, "--bits", 4, "--out", tmp_path / "o.onnx").code == 0
    (tmp_path / "o.onnx").unlink()
    monkeypatch.setattr(
        # No valid model makes the two differ, so the comparison is replaced.
        "exporter.inspection.same_outputs._difference",
        lambda before, after, made=None: None if made else f"{list(before)} {list(after)}",
    )
    assert command("quantize", path, "--bits", 4, "--out", tmp_path / "o.onnx").code == 2
    assert not (tmp_path / "o.onnx").exists()


def test_an_opset_that_cannot_be_converted_is_rejected(pictures, command):
    given = recognizer(pictures.with_name("m.onnx"), 11, ("a", "b", "c"))
    model = onnx.load(given)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    model.graph.node[1].op_type, model.graph.node[1].domain = "Gelu", "com.microsoft"
    onnx.save(model, given)
    ran = command("quantize", given, "--data", pictures, "--out", pictures.with_name("int8.onnx"))
    assert ran.code in {0, 2}, ran.err  # converted, or rejected in one line
    if ran.code:
        assert "opset 11 is too old for int8, and ONNX cannot convert it" in ran.err


def test_stale_shapes_are_removed(tmp_path):
    model = onnx.load(recognizer(tmp_path / "m.onnx", 17, (1, "steps")))
    model.graph.value_info.append(tensor("z", shape=[24, 1, 20]))
    extra = [
        tensor("q", shape=[2, 3]), tensor("last", shape=[2]), tensor("bare"), tensor("unseen", shape=[7])
    ]  # fmt: skip
    model.graph.output.extend(extra)
    seen = [
        {"y": (24, 1, 20), "q": (2, 4), "last": (2,), "bare": (1, 2)},
        {"y": (24, 1, 20), "q": (2,), "last": (), "bare": (1, 2)},
    ]
    forget_stale_shapes(model, seen)
    (inner,) = model.graph.value_info
    assert (inner.type.tensor_type.elem_type, inner.type.tensor_type.HasField("shape")) == (1, False)
    found = {value.name: value.type.tensor_type for value in model.graph.output}
    assert [len(found[name].shape.dim) for name in ("y", "bare", "unseen")] == [3, 2, 1]
    assert not any(size.HasField("dim_value") for size in found["y"].shape.dim)
    assert found["unseen"].shape.dim[0].dim_value == 7
    assert not found["q"].HasField("shape")  # its rank varies, and a node reads it
    assert found["last"].shape.dim[0].dim_value == 2


@pytest.mark.parametrize("stated", [[], ["n"], ["n", 1]], ids=str)
def test_an_output_whose_rank_varies_is_kept(tmp_path, command, stated):
    """Squeeze without axes returns a scalar for one sample, and a vector for many."""
    constants = {"w": np.random.default_rng(0).standard_normal((4, 1)).astype(np.float32)}
    nodes = [helper.make_node("MatMul", ["x", "w"], ["z"]), helper.make_node("Squeeze", ["z"], ["y"])]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])]
    model = save(
        tmp_path / "m.onnx", nodes, [tensor("y", shape=stated)], inputs=inputs, constants=constants
    )
    x = np.random.default_rng(1).standard_normal((32, 4)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    ran = command("quantize", model, "--data", tmp_path / "x.npz", "--out", tmp_path / "o.onnx")
    assert ran.code == 0, ran.err
    outputs = [
        onnxruntime.InferenceSession(str(tmp_path / "o.onnx")).run(None, {"x": x[:n]})[0] for n in (1, 5)
    ]
    assert [output.shape for output in outputs] == [(), (5,)]


def test_a_few_samples_with_nan_outputs_are_found(tmp_path, command):
    """A few dark pictures round to zero, and their norm divides by zero."""
    generator = np.random.default_rng(0)
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1] * 4),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("ReduceL2", ["p", "axes"], ["norm"], keepdims=1),
        helper.make_node("Div", ["p", "norm"], ["y"]),
    ]
    constants = {"w": generator.standard_normal((4, 3, 3, 3)).astype(np.float32), "axes": np.array([1])}
    path = save(tmp_path / "m.onnx", nodes, [tensor("y")], inputs=inputs, constants=constants, opset=18)
    x = generator.standard_normal((40, 3, 8, 8)).astype(np.float32)
    x[3:40:8] *= 1e-6
    np.savez(tmp_path / "x.npz", x=x)
    ran = command("quantize", path, "--data", tmp_path / "x.npz", "--out", tmp_path / "o.onnx")
    assert (ran.code, "output 'y' is NaN or infinite" in ran.err) == (2, True)
    assert not (tmp_path / "o.onnx").exists()


@pytest.mark.parametrize("listed", [True, False], ids=["constants are inputs", "they are not"])
@pytest.mark.parametrize(("opset", "ir_version"), [(8, 3), (9, 3), (11, 4), (17, 13)])
def test_files_of_old_and_new_writers_run_on_the_oldest_runtime(
    pictures, command, opset, ir_version, listed
):
    given, out = recognizer(pictures.with_name("m.onnx"), 9, (1, "steps")), pictures.with_name("o.onnx")
    model = onnx.load(given)
    model.ir_version, model.opset_import[0].version = ir_version, opset
    if listed or ir_version == 3:
        model.graph.input.extend(tensor(c.name, c.data_type, list(c.dims)) for c in model.graph.initializer)
    onnx.save(model, given)
    ran = command("quantize", given, "--data", pictures, "--out", out, "--onnxruntime", ">=1.22")
    assert ran.code == 0, ran.err
    made = onnx.load(out)
    assert 8 <= made.ir_version <= 10
    assert [value.name for value in made.graph.input] == ["x"]


@pytest.mark.parametrize(("side", "sizes"), [(4, [8, 8, 8, 8, 1]), (512, [2, 2, 2, 2, 1])])
def test_large_samples_run_in_smaller_batches_and_few_of_them(side, sizes):
    found = few_samples({"x": np.ones((32, 1, side, side), np.float32)}, None)
    assert [len(feeds["x"]) for feeds in found] == sizes


def test_a_model_whose_outputs_are_nan_in_float_is_refused(tmp_path, command):
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8])]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"]),
        helper.make_node("Relu", ["p"], ["r"]),
        helper.make_node("Div", ["r", "r"], ["y"]),
    ]
    constants = {"w": np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)}
    path = save(tmp_path / "m.onnx", nodes, [tensor("y")], inputs=inputs, constants=constants, opset=18)
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(1).standard_normal((16, 8)).astype(np.float32))
    ran = command("quantize", path, "--data", tmp_path / "x.npz", "--out", tmp_path / "o.onnx")
    assert (ran.code, ran.err.count("error:")) == (2, 1)
    assert "output 'y' is NaN for some samples, in float already" in ran.err
    assert not (tmp_path / "o.onnx").exists()
