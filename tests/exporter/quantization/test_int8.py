"""Static int8: the types in the file, and the inputs that are rejected."""

from __future__ import annotations

import logging

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from bench.core.progress import SILENT
from bench.metrics.parity import parity
from exporter.errors import ExportError
from exporter.graphs.inference import run_model
from exporter.graphs.targets import TARGETS
from exporter.quantization.split import quantize_split
from exporter.recipes import QuantizeConfig


@pytest.fixture
def quantized(onnx_models, splits, tmp_path):
    """Quantize the trained network; returns the report and the model."""

    def run(target="x86-vnni", *, source=onnx_models.float, seed=0, **config):
        path = tmp_path / f"{target}.onnx"
        settings = QuantizeConfig(**{"samples": 16} | config)
        made = quantize_split(
            source, path, splits.calibration, settings, TARGETS[target], seed=seed, progress=SILENT
        )
        return made, onnx.load(path)

    return run


def weights(model):
    """Quantized weights: the constants of at least two dimensions that a DequantizeLinear reads."""
    constants = {i.name: i for i in model.graph.initializer}
    nodes = [n for n in model.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in constants]
    return {
        n.input[0]: tuple(numpy_helper.to_array(constants[name]) for name in n.input)
        for n in nodes
        if len(constants[n.input[0]].dims) > 1
    }


def activation_types(model):
    constants = {i.name: i.data_type for i in model.graph.initializer}
    return {constants[n.input[2]] for n in model.graph.node if n.op_type == "QuantizeLinear"}


@pytest.mark.parametrize(
    ("target", "activations"),
    [
        ("x86-vnni", TensorProto.UINT8),
        ("x86-avx2", TensorProto.UINT8),
        ("portable", TensorProto.UINT8),
        ("arm64", TensorProto.INT8),
    ],
)
def test_every_target_gets_its_types(quantized, target, activations):
    made, model = quantized(target)
    assert activation_types(model) == {activations}
    found = weights(model)
    assert len(found) == 3
    for weight, scale, zero_point in found.values():
        assert weight.dtype == zero_point.dtype == np.int8
        assert not zero_point.any()
        assert scale.shape == zero_point.shape
        assert 64 <= np.abs(weight.astype(int)).max() <= 127
    assert made.activation_type == ("int8" if activations == TensorProto.INT8 else "uint8")
    assert (made.weight_type, made.target) == ("int8", target)
    largest = [
        int(np.abs(row.astype(int)).max())
        for weight, scale, _ in found.values()
        for row in (weight if len(weight) == len(scale) else weight.T)
    ]
    assert sum(made.reduced_channels.values()) == sum(value < 127 for value in largest)
    assert TARGETS[target].saturates or not made.reduced_channels


def test_convolutions_have_a_scale_per_channel(quantized):
    _, model = quantized()
    scales = {name: scale.shape for name, (_, scale, _) in weights(model).items()}
    assert sorted(scales.values()) == [(3,), (8,), (8,)]


def test_the_metadata_states_the_target(quantized):
    _, model = quantized("arm64")
    assert {e.key: e.value for e in model.metadata_props} == {
        "edgeproof.name": "tiny",
        "edgeproof.target": "arm64",
        "edgeproof.min_onnxruntime": "1.22",
    }


def test_nodes_are_counted(quantized):
    made, model = quantized()
    operators = [node.op_type for node in model.graph.node]
    assert made.quantize_nodes == operators.count("QuantizeLinear") > 0
    assert made.dequantize_nodes == operators.count("DequantizeLinear") > 0
    assert made.samples == 16


def test_int8_answers_like_float(onnx_models, splits):
    found = parity(
        run_model(onnx_models.float, splits.evaluation), run_model(onnx_models.int8, splits.evaluation)
    )
    assert found.agreement == 1.0
    assert found.sqnr_db > 20


def test_equal_inputs_give_equal_bytes(quantized):
    one, other, other_seed = quantized()[1], quantized()[1], quantized(seed=3)[1]
    assert one.SerializeToString() == other.SerializeToString() != other_seed.SerializeToString()


def test_excluded_nodes_stay_in_float(quantized):
    _, model = quantized(exclude=("body",))
    node = next(node for node in model.graph.node if node.name == "body")
    constants = {i.name: i.data_type for i in model.graph.initializer}
    assert constants[node.input[1]] == TensorProto.FLOAT
    assert len(weights(model)) == 2


def test_the_error_for_an_unknown_node_lists_known_nodes(quantized):
    with pytest.raises(ExportError) as caught:
        quantized(exclude=("neck",))
    assert (caught.value.place, caught.value.cause) == (
        "quantize.exclude",
        "the graph has no node 'neck'",
    )
    assert "body" in caught.value.fix


def test_nothing_is_logged(quantized, caplog, capfd):
    with caplog.at_level(logging.DEBUG):
        quantized()
        logging.getLogger().warning("the user's own")
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == [
        "the user's own"
    ]
    assert "pre-processing" not in capfd.readouterr().err
