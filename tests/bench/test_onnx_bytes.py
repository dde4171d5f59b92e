"""Models written without the onnx package, checked with it where it is installed."""

from __future__ import annotations

import numpy as np
import pytest

from tests.bench import onnx_bytes

SOUND = ["dynamic", "rounded", "fixed", "heavy", "integers", "nan", "argmax", "topk"]


@pytest.mark.parametrize("name", SOUND)
def test_the_models_of_the_tests_are_valid_onnx(models, name):
    onnx = pytest.importorskip("onnx")
    onnx.checker.check_model(onnx.load(getattr(models, name)), full_check=True)


def test_onnx_reads_every_field(tmp_path):
    onnx = pytest.importorskip("onnx")
    weight = np.arange(12, dtype=np.float32).reshape(4, 3)
    path = tmp_path / "model.onnx"
    path.write_bytes(
        onnx_bytes.model(
            [onnx_bytes.node("Cast", ["x"], ["y"], domain="ai.onnx.ml", to=-1, text="ü")],
            [
                onnx_bytes.value("x", onnx_bytes.tensor(onnx_bytes.INT64, (300, "N", None))),
                onnx_bytes.value("s", onnx_bytes.sequence(onnx_bytes.tensor())),
                onnx_bytes.value("o", onnx_bytes.optional(onnx_bytes.tensor())),
                onnx_bytes.value("m", onnx_bytes.mapping(onnx_bytes.INT64, onnx_bytes.tensor())),
            ],
            [onnx_bytes.value("y", onnx_bytes.tensor(shape=()))],
            [
                onnx_bytes.constant("w", weight),
                onnx_bytes.external_constant("v", weight, tmp_path / "v.bin"),
            ],
        )
        + onnx_bytes.producer("a tool")
        + onnx_bytes.metadata({"key": "value"})
    )
    model = onnx.load(path)
    assert (model.ir_version, model.producer_name) == (8, "a tool")
    assert {(one.domain, one.version) for one in model.opset_import} == {("", 17), ("ai.onnx.ml", 3)}
    assert [(one.key, one.value) for one in model.metadata_props] == [("key", "value")]
    (node,) = model.graph.node
    assert (node.op_type, node.domain, list(node.input), list(node.output)) == (
        "Cast", "ai.onnx.ml", ["x"], ["y"],
    )  # fmt: skip
    read = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
    assert read == {"to": -1, "text": "ü".encode()}
    kinds = [one.type.WhichOneof("value") for one in model.graph.input]
    assert kinds == ["tensor_type", "sequence_type", "optional_type", "map_type"]
    sizes = model.graph.input[0].type.tensor_type.shape.dim
    assert [size.WhichOneof("value") for size in sizes] == ["dim_value", "dim_param", None]
    for initializer in model.graph.initializer:
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(initializer), weight)
