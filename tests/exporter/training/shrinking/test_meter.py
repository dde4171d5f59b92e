"""Networks in their deployed form, and the files that store kernel times. Nothing is timed here."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from exporter.recipes import ExportConfig, PreprocessConfig, QuantizeConfig
from exporter.results import Costs
from exporter.sources.splits import Split
from exporter.training.shrinking.costs import Goal
from exporter.training.shrinking.layer_costs import Kernel, Layer
from exporter.training.shrinking.meter import HostMeter


@pytest.fixture
def sample():
    bytes_ = np.random.default_rng(0).integers(0, 256, (10, 3, 16, 16))
    return Split({"image": ((bytes_ - 127) / 128).astype(np.float32)}, np.arange(10) % 5)


@pytest.mark.parametrize(
    "shape", [ExportConfig(), ExportConfig(preprocess=PreprocessConfig())], ids=["", "bytes"]
)
@pytest.mark.parametrize("precision", ["int8", "fp32"])
def test_networks_are_exported_in_the_deployed_form(shapes, sample, tmp_path, precision, shape):
    meter = HostMeter(
        folder=tmp_path,
        sample=sample,
        precision=precision,
        export_config=shape,
        quantize_config=QuantizeConfig(target="x86-vnni"),
    )
    first, second = (onnx.load(meter.export(shapes.build("residual"))) for _ in range(2))
    assert first.graph.input[0].type.tensor_type.elem_type == (
        onnx.TensorProto.FLOAT if shape.preprocess is None else onnx.TensorProto.UINT8
    )
    operators = {node.op_type for node in first.graph.node}
    assert ("QuantizeLinear" in operators) == (precision == "int8")
    in_float = onnx.load(meter.export_float(shapes.build("residual")))
    assert "QuantizeLinear" not in {node.op_type for node in in_float.graph.node}
    assert len(first.graph.node) == len(second.graph.node)


def test_tables_have_a_file_for_each_setting(sample, tmp_path, monkeypatch):
    kernel = Kernel(
        inputs=4,
        outputs=4,
        groups=1,
        size=(2, 2),
        out_size=(2, 2),
        window=(1, 1),
        stride=(1, 1),
        dilation=(1, 1),
    )
    layer = Layer("layer", kernel, {}, {})
    monkeypatch.setattr(
        "exporter.training.shrinking.meter.time_kernels", lambda kernels, setting: [1.0] * len(kernels)
    )

    def count(precision, timings=tmp_path / "tables", **others):
        meter = HostMeter(folder=tmp_path, sample=sample, precision=precision, timings=timings, **others)
        return meter.table().prepare([layer], {})

    assert count("int8") == 1
    assert count("int8") == 0
    assert count("fp32") == 1
    assert count("int8", threads=2) == 1
    assert count("int8", quantize_config=QuantizeConfig(target="arm64")) == 1
    assert len(list((tmp_path / "tables").iterdir())) == 4
    assert count("int8", timings=None) == 1


def test_each_goal_is_computed_in_its_own_unit():
    before = Costs(latency_ms=2.0, size_bytes=100, macs=1000, params=50, float_latency_ms=4.0)
    after = Costs(latency_ms=0.5, size_bytes=40, macs=300, params=10, float_latency_ms=None)
    assert Goal("latency_ms", 1.0).reached(before, after) == 0.5
    assert Goal("latency_ratio", 0.5).reached(before, after) == 0.25
    assert Goal("float_latency_ratio", 0.5).reached(before, after) == 0.125
    assert Goal("float_latency_ratio", 0.5).quantity == "latency"
    assert Goal("size_ratio", 0.5).reached(before, after) == 0.4
    assert Goal("macs_ratio", 0.5).reached(before, after) == 0.3
    assert Goal("params_ratio", 0.5).reached(before, after) == 0.2
