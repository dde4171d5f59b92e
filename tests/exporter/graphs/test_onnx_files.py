"""Models in one file and in two."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from bench.core.errors import ModelError, StorageError
from bench.core.files import model_sha256, model_size, sha256_of
from bench.core.model_file import external_data
from bench.core.progress import SILENT
from exporter.errors import ExportError
from exporter.graphs import onnx_files
from exporter.graphs.inference import run_model
from exporter.graphs.onnx_files import content_hash, infer_shapes, read_model, write_checked
from exporter.graphs.targets import TARGETS
from exporter.quantization.int8 import Int8Settings, quantize_model
from exporter.sources.splits import Split

WEIGHT = np.random.default_rng(0).standard_normal((30, 20)).astype(np.float32)


@pytest.fixture
def small_files(monkeypatch):
    """Limit a protobuf message to 512 bytes of weights."""
    monkeypatch.setattr(onnx_files, "MAX_WEIGHT_BYTES", 512)


@pytest.fixture
def model():
    """y = x @ w; w has 2,400 bytes."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")],
        "net",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 30])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", 20])],
        [numpy_helper.from_array(WEIGHT, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "models"


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_small_model_is_one_file(model, folder):
    write_checked(model, folder / "m.onnx")
    assert files(folder) == ["m.onnx"]
    assert model_size(folder / "m.onnx") == (folder / "m.onnx").stat().st_size
    assert model_sha256(folder / "m.onnx") == sha256_of(folder / "m.onnx")


@pytest.mark.usefixtures("small_files")
def test_a_large_model_is_two_files_that_belong_together(model, folder):
    path = folder / "m.onnx"
    write_checked(model, path)
    assert files(folder) == ["m.onnx", "m.onnx.data"]
    assert path.stat().st_size < 512
    assert external_data(path)[0].stat().st_size >= WEIGHT.nbytes
    tensor = onnx.load(path, load_external_data=False).graph.initializer[0]
    assert {entry.key: entry.value for entry in tensor.external_data}["location"] == "m.onnx.data"
    found = numpy_helper.to_array(read_model(path).graph.initializer[0])
    np.testing.assert_array_equal(found, numpy_helper.to_array(model.graph.initializer[0]))


@pytest.mark.usefixtures("small_files")
def test_the_hash_of_a_large_model_covers_its_weights(model, folder):
    path = folder / "m.onnx"
    write_checked(model, path)
    before = model_sha256(path)
    data = external_data(path)[0]
    data.write_bytes(bytes([data.read_bytes()[0] ^ 1]) + data.read_bytes()[1:])
    assert model_sha256(path) != before


def test_the_weights_of_the_replaced_model_are_removed(model, folder, monkeypatch):
    with monkeypatch.context() as lowered:
        lowered.setattr(onnx_files, "MAX_WEIGHT_BYTES", 512)
        write_checked(model, folder / "m.onnx")
    write_checked(model, folder / "m.onnx")
    assert files(folder) == ["m.onnx"]


def test_a_file_that_the_old_model_does_not_name_is_kept(model, folder):
    """A file name that ends in `.data` is not enough to remove the file."""
    folder.mkdir()
    (folder / "m.onnx.data").write_bytes(b"somebody's weights")
    write_checked(model, folder / "m.onnx")
    assert (folder / "m.onnx.data").read_bytes() == b"somebody's weights"


@pytest.mark.usefixtures("small_files")
def test_weights_of_another_model_are_not_replaced(model, folder):
    folder.mkdir()
    (folder / "m.onnx.data").write_bytes(b"somebody's weights")
    with pytest.raises(StorageError, match=r"does not belong to m\.onnx"):
        write_checked(model, folder / "m.onnx")
    assert (folder / "m.onnx.data").read_bytes() == b"somebody's weights"
    assert files(folder) == ["m.onnx.data"]


@pytest.mark.usefixtures("small_files")
def test_a_rejected_large_model_leaves_no_files_and_keeps_the_old_model(model, folder):
    path = folder / "m.onnx"
    write_checked(model, path)
    before = [file.read_bytes() for file in sorted(folder.iterdir())]
    model.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(ExportError, match="ONNX's checker rejects"):
        write_checked(model, path)
    assert [file.read_bytes() for file in sorted(folder.iterdir())] == before


@pytest.mark.usefixtures("small_files")
def test_a_folder_is_not_replaced(model, folder):
    (folder / "m.onnx").mkdir(parents=True)
    with pytest.raises(StorageError):
        write_checked(model, folder / "m.onnx")
    assert files(folder) == ["m.onnx"]


@pytest.mark.usefixtures("small_files")
def test_a_large_model_is_quantized_into_two_files(model, folder):
    path, int8 = folder / "m.onnx", folder / "int8.onnx"
    write_checked(model, path)
    x = np.random.default_rng(1).standard_normal((16, 30)).astype(np.float32)
    split = Split({"x": x}, np.zeros(16, np.int64))
    quantize_model(
        read_model(path), int8, split,
        Int8Settings(TARGETS["x86-vnni"]), progress=SILENT,
    )  # fmt: skip
    assert np.corrcoef(run_model(path, split).ravel(), run_model(int8, split).ravel())[0, 1] > 0.999


def test_the_hash_of_a_model_in_memory_depends_on_weights_and_nodes(model):
    other, renamed = onnx.ModelProto(), onnx.ModelProto()
    for copy in (other, renamed):
        copy.CopyFrom(model)
    assert content_hash(other) == content_hash(model)
    content = bytearray(other.graph.initializer[0].raw_data)
    content[0] ^= 1
    other.graph.initializer[0].raw_data = bytes(content)
    renamed.graph.node[0].name = "another"
    assert len({content_hash(each) for each in (model, other, renamed)}) == 3


@pytest.mark.usefixtures("small_files")
def test_shapes_of_a_large_model_are_inferred_and_its_weights_kept(model):
    model.graph.node.append(helper.make_node("Relu", ["y"], ["z"]))
    model.graph.output.append(helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, None))
    shaped = infer_shapes(model)
    assert [d.dim_value for d in shaped.graph.output[1].type.tensor_type.shape.dim][1] == 20
    assert shaped.graph.initializer[0] == model.graph.initializer[0]


@pytest.mark.parametrize(
    "location", ["/etc/hostname", "../secret.data", "C:\\secret", "sub/../../secret.data"]
)
def test_weights_outside_the_folder_are_rejected(model, tmp_path, location):
    (tmp_path / "secret.data").write_bytes(bytes(2400))
    path = tmp_path / "inner" / "m.onnx"
    path.parent.mkdir()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError) as caught:
        read_model(path)
    assert caught.value.cause == f"reads its weights from {location!r}, outside its folder"


def test_a_link_out_of_the_folder_is_rejected(model, tmp_path):
    (tmp_path / "secret").write_bytes(bytes(2400))
    inner = tmp_path / "inner"
    inner.mkdir()
    (inner / "w.data").symlink_to(tmp_path / "secret")
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="w.data")
    (inner / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="outside its folder"):
        read_model(inner / "m.onnx")


@pytest.mark.usefixtures("small_files")
def test_missing_weights_are_reported(model, folder):
    write_checked(model, folder / "m.onnx")
    (folder / "m.onnx.data").unlink()
    with pytest.raises(ModelError, match="external data cannot be read"):
        read_model(folder / "m.onnx")
