"""Export to ONNX: the content of the file, and the errors for networks that cannot be exported."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from bench.core.errors import DataError
from bench.core.progress import SILENT
from bench.metrics.parity import parity
from exporter.errors import ExportError
from exporter.graphs.inference import run_model
from exporter.graphs.targets import TARGETS
from exporter.networks.network import load_network, predict
from exporter.onnx_export.export import check_opset, export, open_axes
from exporter.quantization.int8 import Int8Settings, quantize_model
from exporter.recipes import ExportConfig
from exporter.sources.splits import Split


@pytest.fixture
def exported(tmp_path, splits):
    """Export a module and return the path of the file."""

    def run(module, sample=splits.calibration, opset=20, metadata=None):
        path = tmp_path / "model.onnx"
        export(module, sample, path, ExportConfig(opset=opset), metadata or {})
        return path

    return run


def refusal(exported, module):
    with pytest.raises(ExportError) as caught:
        exported(module)
    return caught.value


@pytest.fixture(scope="module")
def graph(onnx_models):
    return onnx.load(onnx_models.float).graph


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_any_batch_size_gives_the_outputs_of_torch(tiny, trained, onnx_models, splits, batch):
    split = splits.evaluation.take(np.arange(batch))
    expected = predict(load_network(tiny.net(), trained).module, split)
    assert np.allclose(run_model(onnx_models.float, split), expected, atol=1e-5)


def test_inputs_and_outputs_are_named(graph):
    assert [value.name for value in graph.input] == ["image"]
    assert [value.name for value in graph.output] == ["logits"]
    dimensions = graph.input[0].type.tensor_type.shape.dim
    assert dimensions[0].dim_param == "batch"
    assert [d.dim_value for d in dimensions[1:]] == [1, 8, 8]


def test_norms_are_folded_and_the_mean_is_a_pool(graph):
    operators = [node.op_type for node in graph.node]
    assert operators == ["Conv", "Relu", "Conv", "Relu", "GlobalAveragePool", "Reshape", "Gemm"]


def test_nodes_and_weights_have_the_names_of_the_code(graph):
    named = {node.name: node for node in graph.node}
    assert {"stem", "body", "head"} <= named.keys()
    assert named["body"].input[1:] == ["body.weight", "body.bias"]
    assert len(named) == len(graph.node)


def test_the_file_has_no_paths_and_stack_traces(onnx_models):
    content = onnx_models.float.read_bytes()
    for trace in (
        b"File ",
        b".py",
        b"conftest",
        str(Path.cwd()).encode(),
        b"/site-packages",
        b"stack_trace",
    ):
        assert trace not in content
    model = onnx.load(onnx_models.float)
    stated = {"edgeproof.name", "edgeproof.min_onnxruntime"}
    assert {entry.key for entry in model.metadata_props} == stated
    assert model.graph.name == "tiny"


def test_the_same_network_gives_the_same_bytes(tiny, exported):
    first = exported(tiny.net(seed=2)).read_bytes()
    assert exported(tiny.net(seed=2)).read_bytes() == first
    assert exported(tiny.net(seed=3)).read_bytes() != first


@pytest.mark.parametrize("opset", [18, 21])
def test_the_file_has_the_requested_opset(tiny, exported, opset):
    model = onnx.load(exported(tiny.net(), opset=opset))
    assert [entry.version for entry in model.opset_import if entry.domain == ""] == [opset]


def test_metadata_are_kept(tiny, exported):
    model = onnx.load(exported(tiny.net(), metadata={"edgeproof.name": "x", "edgeproof.weights": "y"}))
    assert {e.key: e.value for e in model.metadata_props} == {
        "edgeproof.name": "x",
        "edgeproof.weights": "y",
        "edgeproof.min_onnxruntime": "1.22",
    }


def test_dropout_is_off(exported, splits):
    module = nn.Sequential(nn.Flatten(), nn.Dropout(0.9), nn.Linear(64, 3)).train()
    path = exported(module)
    sample = splits.evaluation.take(np.arange(5))
    assert np.allclose(run_model(path, sample), predict(module, sample), atol=1e-5)
    assert "Dropout" not in {node.op_type for node in onnx.load(path).graph.node}


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, right, left):
        return self.fc(left - 2 * right)


class OtherNames(TwoInputs):
    def forward(self, first, second):
        return self.fc(first - 2 * second)


@pytest.mark.parametrize("kind", [TwoInputs, OtherNames])
def test_two_inputs_by_name_or_in_order(exported, kind):
    generator = np.random.default_rng(0)
    left, right = (generator.standard_normal((6, 4)).astype(np.float32) for _ in range(2))
    sample = Split({"left": left, "right": right}, np.zeros(6, np.int64))
    module = kind()
    session = onnxruntime.InferenceSession(exported(module, sample))
    assert {value.name for value in session.get_inputs()} == {"left", "right"}
    expected = predict(module, sample)
    assert np.allclose(session.run(None, {"left": left, "right": right})[0], expected, atol=1e-5)


class Namesake(nn.Module):
    """Modules with the names of the input and the output, and a parameter with the name of an operator."""

    def __init__(self):
        super().__init__()
        self.image = nn.Conv2d(1, 3, 3)
        self.logits = nn.Linear(3, 3)
        self.Add = nn.Parameter(torch.ones(3))

    def forward(self, image):
        x = self.image(image).mean((2, 3))
        return torch.relu(self.logits(x) + self.Add)


def test_modules_may_have_the_names_of_inputs_and_operators(exported, splits):
    module = Namesake()
    path = exported(module)
    assert np.allclose(run_model(path, splits.evaluation), predict(module, splits.evaluation), atol=1e-5)


class Eigen(nn.Module):
    def forward(self, image):
        return torch.linalg.eigh(image[:, 0])[0][:, :3]


def test_an_operator_without_onnx_equivalent_is_named(exported, capfd):
    error = refusal(exported, Eigen())
    assert error.place == "operator aten._linalg_eigh"
    assert error.cause == "has no equivalent in ONNX"
    assert capfd.readouterr().err == ""


class Branch(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(64, 3)

    def forward(self, image):
        x = torch.flatten(image, 1)
        if x.sum() > 0:
            x = x * 2
        return self.fc(x)


def test_a_branch_on_values_is_named_with_its_line(exported, capfd):
    source = Path(__file__).read_text().splitlines()
    line = next(number for number, text in enumerate(source, 1) if "if x.sum() > 0:" in text)
    error = refusal(exported, Branch())
    assert error.place == f"{Path(__file__).name}, line {line}"
    assert error.cause == "branches on the values of a tensor"
    assert capfd.readouterr().err == ""


def doubled(x):
    return x * 2 if x.mean() > 0 else x


class BranchInHelper(Branch):
    def forward(self, image):
        return self.fc(doubled(torch.flatten(image, 1)))


def test_a_branch_in_a_helper_is_named_with_the_helpers_line(exported):
    source = Path(__file__).read_text().splitlines()
    line = next(number for number, text in enumerate(source, 1) if "if x.mean() > 0" in text)
    error = refusal(exported, BranchInHelper())
    assert error.place == f"{Path(__file__).name}, line {line}"
    assert error.cause == "branches on the values of a tensor"


class Raises(nn.Module):
    def forward(self, image):
        raise RuntimeError("this network is broken")


def test_other_failures_keep_their_message(exported, tmp_path):
    error = refusal(exported, Raises())
    assert error.place == "export"
    assert "this network is broken" in error.cause
    assert error.fix.endswith("to see the cause; until then, all stages except shrink, qat and export work")
    assert not list(tmp_path.iterdir())


class KeywordOnly(TwoInputs):
    def forward(self, *, right, left):
        return super().forward(right, left)


class AnyNumber(TwoInputs):
    def forward(self, *inputs):
        return super().forward(inputs[1], inputs[0])


@pytest.mark.parametrize("kind", [KeywordOnly, AnyNumber])
def test_unusual_signatures_of_forward_are_exported(exported, kind):
    generator = np.random.default_rng(0)
    arrays = {name: generator.standard_normal((6, 4)).astype(np.float32) for name in ("left", "right")}
    sample, module = Split(arrays, np.zeros(6, np.int64)), kind()
    path = exported(module, sample)
    assert [value.name for value in onnx.load(path).graph.input] == ["left", "right"]
    assert np.allclose(run_model(path, sample), predict(module, sample), atol=1e-5)


def test_a_forward_with_other_parameters_is_refused(exported):
    class Three(TwoInputs):
        def forward(self, first, second, third):
            return self.fc(first + second + third)

    arrays = {name: np.ones((3, 4), np.float32) for name in ("left", "right")}
    with pytest.raises(ExportError) as caught:
        exported(Three(), Split(arrays, np.zeros(3, np.int64)))
    assert caught.value.place == "the network's forward"
    assert "(first, second, third), but the data have the inputs left, right" in caught.value.cause


def test_strides_of_the_data_do_not_change_the_graph(tiny, exported, splits):
    pictures = splits.calibration.inputs["image"].transpose(0, 2, 3, 1).copy().transpose(0, 3, 1, 2)
    assert np.ascontiguousarray(pictures).strides != splits.calibration.inputs["image"].strides
    odd = exported(tiny.net(), Split({"image": pictures}, splits.calibration.labels)).read_bytes()
    assert odd == exported(tiny.net()).read_bytes()


SEQUENCE = {name: {"1": "sequence"} for name in ("input_ids", "attention_mask")}


def test_an_encoder_takes_any_batch_and_any_length(encoder, tmp_path):
    module, path = encoder.net(), tmp_path / "model.onnx"
    export(module, encoder.draw(6, 10), path, ExportConfig(dynamic=SEQUENCE), {})
    for value in onnx.load(path).graph.input:
        assert [d.dim_param for d in value.type.tensor_type.shape.dim] == ["batch", "sequence"]
        assert value.type.tensor_type.elem_type == onnx.TensorProto.INT64
    for count, length in ((1, 4), (5, 23), (6, 10)):
        sample = encoder.draw(count, length)
        assert np.allclose(run_model(path, sample), predict(module, sample), atol=1e-5)


def test_an_encoder_is_quantized_and_still_takes_any_length(encoder, tmp_path):
    module, path, int8 = encoder.net(), tmp_path / "model.onnx", tmp_path / "int8.onnx"
    samples = encoder.draw(32, 10)
    export(module, samples, path, ExportConfig(dynamic=SEQUENCE), {})
    quantize_model(
        onnx.load(path), int8, samples,
        Int8Settings(TARGETS["x86-vnni"]), progress=SILENT,
    )  # fmt: skip
    assert "QuantizeLinear" in {node.op_type for node in onnx.load(int8).graph.node}
    other = encoder.draw(7, 17)
    # Low, because the attention mask is not rewritten for int8, but enough to show the same network.
    assert parity(predict(module, other), run_model(int8, other)).sqnr_db > 3


@pytest.mark.parametrize(
    ("dynamic", "place", "cause"),
    [
        ({"tokens": {"1": "s"}}, "export.dynamic.tokens", "the data have no input 'tokens'"),
        (
            {"input_ids": {"2": "s"}},
            "export.dynamic.input_ids",
            "axis 2 does not exist, the data have 2 axes",
        ),
    ],
)
def test_dynamic_axes_that_the_data_lack_are_refused(encoder, dynamic, place, cause):
    with pytest.raises(DataError) as caught:
        open_axes(encoder.draw(3, 5), ExportConfig(dynamic=dynamic))
    assert (caught.value.place, caught.value.cause) == (place, cause)


def test_a_dynamic_axis_needs_more_than_one_element(encoder):
    with pytest.raises(DataError, match="the data have 1 element along axis 1"):
        open_axes(encoder.draw(3, 1), ExportConfig(dynamic=SEQUENCE))


class Fixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.positions = nn.Parameter(torch.zeros(5))

    def forward(self, input_ids):
        return input_ids + self.positions


def test_a_dynamic_axis_of_fixed_size_is_named(tmp_path):
    sample = Split({"input_ids": np.ones((3, 5), np.int64)}, np.zeros(3, np.int64))
    config = ExportConfig(dynamic={"input_ids": {"1": "sequence"}})
    with pytest.raises(ExportError) as caught:
        export(Fixed(), sample, tmp_path / "model.onnx", config, {})
    assert "axis 1 of input" in caught.value.place
    assert "input_ids" in caught.value.place
    assert "only works for size 5" in caught.value.cause


def test_an_opset_that_the_runtime_lacks_is_refused_before_any_work():
    check_opset(ExportConfig().opset)
    with pytest.raises(
        ExportError, match=r"export.opset: ONNX Runtime \S+ does not support opset 99; lower export.opset"
    ):
        check_opset(99)
