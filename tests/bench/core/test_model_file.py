"""Metadata and external data of an .onnx file, compared with the onnx package."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.core.errors import ModelError
from bench.core.model_file import NOTHING_SAID, external_data, read_model_file

onnx = pytest.importorskip("onnx")
TensorProto, helper, numpy_helper = onnx.TensorProto, onnx.helper, onnx.numpy_helper


def elsewhere(name, location):
    """A tensor whose content is in another file."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[2])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    tensor.external_data.add(key="offset", value="0")
    return tensor


def model_with(*initializers, nodes=(), functions=()):
    graph = helper.make_graph(list(nodes), "g", [], [], list(initializers))
    return helper.make_model(graph, functions=list(functions))


def test_metadata_match_the_onnx_package(models, tmp_path):
    model = onnx.load(models.dynamic)
    helper.set_model_props(model, {"edgeproof.target": "arm64", "größe": "8 × 8", "empty": ""})
    path = tmp_path / "m.onnx"
    onnx.save(model, path)
    found = read_model_file(path)
    assert found.metadata == {"edgeproof.target": "arm64", "größe": "8 × 8", "empty": ""}
    assert found.locations == ()


def test_locations_are_found_wherever_a_tensor_can_be(tmp_path):
    """In initializers, attributes, branches, sparse tensors and functions; each name once."""
    sparse = onnx.SparseTensorProto(values=elsewhere("v", "sparse.bin"), indices=elsewhere("i", "i.bin"))
    branch = helper.make_graph([], "branch", [], [], [elsewhere("b", "branch.bin")])
    constant = helper.make_node("Constant", [], ["c"], value=elsewhere("c", "constant.bin"))
    condition = helper.make_node("If", ["x"], ["y"], then_branch=branch)
    function = helper.make_function(
        "own", "F", [], ["c"], [helper.make_node("Constant", [], ["c"], value=elsewhere("f", "f.bin"))], []
    )
    model = model_with(
        elsewhere("one", "w.bin"),
        elsewhere("two", "w.bin"),
        numpy_helper.from_array(np.ones(5, np.float32), "inside"),
        nodes=(constant, condition),
        functions=[function],
    )
    model.graph.sparse_initializer.append(sparse)
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    assert set(read_model_file(path).locations) == {
        "w.bin", "constant.bin", "branch.bin", "sparse.bin", "i.bin", "f.bin",
    }  # fmt: skip


def test_only_files_that_the_model_names_are_its_data(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(model_with(elsewhere("w", "weights.bin")).SerializeToString())
    assert external_data(path) == []
    for name in ("weights.bin", "m.onnx.data", "m.onnx_data"):
        (tmp_path / name).write_bytes(b"12345678")
    assert external_data(path) == [tmp_path / "weights.bin"]


@pytest.mark.parametrize("location", ["../w.bin", "/etc/passwd", "a/../../w.bin", "..\\w.bin", "C:w.bin"])
def test_data_outside_the_folder_are_refused(tmp_path, location):
    path = tmp_path / "model" / "m.onnx"
    path.parent.mkdir()
    path.write_bytes(model_with(elsewhere("w", location)).SerializeToString())
    (tmp_path / "w.bin").write_bytes(b"12345678")
    with pytest.raises(ModelError, match="outside its folder"):
        external_data(path)


def test_a_link_that_leads_outside_is_refused(tmp_path):
    path = tmp_path / "model" / "m.onnx"
    path.parent.mkdir()
    path.write_bytes(model_with(elsewhere("w", "w.bin")).SerializeToString())
    (tmp_path / "secret").write_bytes(b"12345678")
    (path.parent / "w.bin").symlink_to(tmp_path / "secret")
    with pytest.raises(ModelError, match="outside its folder"):
        external_data(path)


@given(content=st.binary(max_size=200))
def test_random_bytes_raise_nothing(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "noise.onnx"
    path.write_bytes(content)
    read_model_file(path)


@given(cut=st.integers(0, 10_000))
def test_a_truncated_model_raises_nothing(tmp_path_factory, models, cut):
    whole = models.dynamic.read_bytes()
    path = tmp_path_factory.getbasetemp() / "cut.onnx"
    path.write_bytes(whole[: cut % len(whole)])
    read_model_file(path)


def field(number, content):
    """A length-delimited field of a protobuf message."""
    size, pieces = len(content), []
    while size > 0x7F:
        pieces.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes([number << 3 | 2, *pieces, size]) + content


def test_too_deeply_nested_messages_are_not_read(tmp_path):
    metadata = field(14, field(1, b"key") + field(2, b"value"))
    path = tmp_path / "deep.onnx"
    for depth, found in ((10, {"key": "value"}), (400, {})):
        graph = b""
        for _ in range(depth):
            graph = field(1, field(5, field(6, graph)))  # the attribute of a node contains a graph
        path.write_bytes(field(7, graph) + metadata)
        assert read_model_file(path).metadata == found


def test_a_store_of_links_is_read(tmp_path):
    """Model and weights may be links into a folder that names files by their hash."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "main"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    (blobs / "1a").write_bytes(model_with(elsewhere("w", "w.bin")).SerializeToString())
    (blobs / "2b").write_bytes(b"12345678")
    (snapshot / "m.onnx").symlink_to(blobs / "1a")
    (snapshot / "w.bin").symlink_to(blobs / "2b")
    assert external_data(snapshot / "m.onnx") == [snapshot / "w.bin"]


def test_an_absent_and_an_empty_file_have_no_metadata(tmp_path):
    assert read_model_file(tmp_path / "absent.onnx") == NOTHING_SAID
    (tmp_path / "empty.onnx").touch()
    assert read_model_file(tmp_path / "empty.onnx") == NOTHING_SAID
