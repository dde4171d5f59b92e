"""Files whose weights are in a second file: shared, overlapping, damaged or absent."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bench.core.errors import ModelError
from exporter.pipeline.quantize_file import quantize_file

GENERATOR = np.random.default_rng(0)
X = GENERATOR.standard_normal((24, 16)).astype(np.float32)
WEIGHT = GENERATOR.standard_normal((16, 16)).astype(np.float32)


@pytest.fixture
def given(tmp_path):
    """Two products, and their weights in the file `weights.bin`."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="first"),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        helper.make_node("MatMul", ["r", "v"], ["y"], name="second"),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(WEIGHT, "w"), numpy_helper.from_array(WEIGHT[:, :8].copy(), "v")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = tmp_path / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    np.savez(tmp_path / "data.npz", x=X)
    return path


def state(path, **entries):
    """Change what the model states about the external data of the weights `v`."""
    model = onnx.load(path, load_external_data=False)
    stated = {one.key: one.value for one in model.graph.initializer[1].external_data} | entries
    del model.graph.initializer[1].external_data[:]
    for key, value in stated.items():
        if value is not None:
            model.graph.initializer[1].external_data.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())


def quantize(path):
    return quantize_file(
        path, path.parent / "data.npz", path.parent / "int8.onnx", target="x86-avx2", goal="size"
    )


@pytest.mark.parametrize(
    "entries",
    [{}, {"offset": "0"}, {"offset": "128"}, {"offset": "0", "length": None}, {"offset": None}],
    ids=str,
)
def test_tensors_may_share_or_overlap_in_external_data(given, entries):
    state(given, **entries)
    assert quantize(given).made.fidelity.sqnr_db > 20


def cut(path, size):
    path.write_bytes(path.read_bytes()[:size])


@pytest.mark.parametrize(
    ("spoil", "cause"),
    [
        (lambda data: data.unlink(), "cannot be read: weights.bin is missing"),
        (
            lambda data: cut(data, 1100),
            "cannot be read: 'v' needs bytes 1024 to 1536, but the file has 1100",
        ),
        (lambda data: cut(data, 0), "but the file has 0"),
        (lambda data: (data.unlink(), data.mkdir()), "cannot be read: weights.bin is not a file"),
        (lambda data: state(data.with_name("model.onnx"), offset="-4"), "states the offset -4 for"),
        (
            lambda data: state(data.with_name("model.onnx"), offset="a"),
            "cannot load it (Failed to parse value",
        ),
        (
            lambda data: state(data.with_name("model.onnx"), length="8"),
            "states 8 bytes for the external data",
        ),
    ],
)
def test_damaged_external_data_are_one_line(given, spoil, cause, capfd):
    spoil(given.with_name("weights.bin"))
    with pytest.raises(ModelError) as caught:
        quantize(given)
    assert cause in caught.value.cause
    assert "ONNXRuntimeError" not in str(caught.value)
    assert not given.with_name("int8.onnx").exists()
    assert capfd.readouterr() == ("", "")
