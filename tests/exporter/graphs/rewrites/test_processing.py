"""Pre- and postprocessing inside the graph: inputs are bytes, outputs are classes."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx
import onnxruntime
import pytest

from bench.core.errors import DataError
from bench.core.progress import SILENT
from bench.inputs.evaluation import read_evaluation
from bench.metrics.parity import parity
from exporter.errors import ExportError
from exporter.graphs.index import GraphIndex
from exporter.graphs.inference import run_model, run_scores
from exporter.graphs.rewrites.processing import as_shipped, byte_ranges, join_bytes, network_alone
from exporter.graphs.targets import TARGETS
from exporter.networks.network import predict
from exporter.onnx_export.export import export
from exporter.pipeline.gate_step import GateStep
from exporter.pipeline.resolved_recipe import resolve_recipe
from exporter.quantization.int8 import Int8Settings, quantize_model
from exporter.quantization.int8_repaired import RepairSettings, quantize_repaired
from exporter.quantization.repair.held_out import hold_out
from exporter.recipes import (
    ExportConfig,
    FallbackConfig,
    PostprocessConfig,
    PreprocessConfig,
    read_recipe,
)
from exporter.sources.splits import Split
from exporter.training.distillation.onnx_teacher import OnnxTeacher

AFFINE = PreprocessConfig()  # (byte - 127) / 128
BY_CHANNEL = PreprocessConfig(mean=(123.7,), std=(58.4,))


@pytest.fixture(scope="module")
def pictures():
    """Random bytes [40, 8, 8, 1]; 0 and 255 occur."""
    drawn = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1)).astype(np.uint8)
    drawn[0, 0, 0], drawn[0, 0, 1] = 0, 255
    return drawn


def normalised(pictures, config):
    """The split that a data factory would return for pictures of bytes: float32 [N, C, H, W]."""
    values = (pictures.astype(np.float32) - np.float32(config.mean)) / np.float32(config.std)
    return Split({"image": values.transpose(0, 3, 1, 2)}, np.arange(len(pictures)) % 3)


@pytest.fixture(scope="module")
def made(tiny, tmp_path_factory):
    """Export and quantize the tiny network; returns module, split, shipped split and both paths."""

    @cache
    def make_once(content, preprocess, postprocess, target):
        pictures = np.frombuffer(content, np.uint8).reshape(-1, 8, 8, 1)
        split = normalised(pictures, preprocess or AFFINE)
        module = tiny.net().eval()
        folder = tmp_path_factory.mktemp("made")
        path, int8 = folder / "float.onnx", folder / "int8.onnx"
        export(module, split, path, ExportConfig(preprocess=preprocess, postprocess=postprocess), {})
        shipped = as_shipped(split, preprocess)
        quantize_model(
            onnx.load(path), int8, shipped,
            Int8Settings(TARGETS[target], "percentile"), progress=SILENT,
        )  # fmt: skip
        return module, split, shipped, path, int8

    def make(pictures, preprocess=None, postprocess=None, target="x86-vnni"):
        return make_once(pictures.tobytes(), preprocess, postprocess, target)

    return make


def operators(path):
    return [node.op_type for node in onnx.load(path).graph.node]


def run_as(path, folder, *, signed=False):
    """The operators of a model after ONNX Runtime's optimizations, for unsigned or signed activations."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.qdqisint8allowed", str(int(signed)))
    options.log_severity_level = 3
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return operators(folder / "optimized.onnx")


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@pytest.mark.parametrize("config", [AFFINE, BY_CHANNEL, PreprocessConfig(mean=(0.0,), std=(255.0,))])
def test_bytes_have_the_outputs_of_torch_on_normalised_pictures(made, pictures, config, layout):
    config = config.model_copy(update={"layout": layout})
    module, split, shipped, path, _ = made(pictures, config)
    expected = pictures if layout == "nhwc" else pictures.transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(shipped.inputs["image"], expected)
    assert np.allclose(run_model(path, shipped), predict(module, split), atol=1e-5)
    value = onnx.load(path).graph.input[0]
    assert (value.name, value.type.tensor_type.elem_type) == ("image", onnx.TensorProto.UINT8)
    assert value.type.tensor_type.shape.dim[0].dim_param == "batch"


def test_each_channel_has_its_own_mean_and_std(pictures):
    config = PreprocessConfig(mean=(124.0, 116.0, 104.0), std=(58.0, 57.0, 56.0))
    coloured = np.concatenate([pictures, pictures[::-1], 255 - pictures], axis=3)
    shipped = as_shipped(normalised(coloured, config), config)
    np.testing.assert_array_equal(shipped.inputs["image"], coloured)


def test_the_tensors_of_the_network_keep_their_names(made, pictures):
    names = {}
    for config in (None, AFFINE, BY_CHANNEL):
        graph = onnx.load(made(pictures, config, PostprocessConfig(kind="softmax"))[3]).graph
        nodes = [node for node in graph.node if not node.name.startswith(("preprocess.", "postprocess."))]
        names[config] = [(node.name, list(node.output)) for node in nodes]
    assert names[None] == names[AFFINE] == names[BY_CHANNEL]


def test_raw_bytes_feed_the_first_integer_convolution(made, pictures, tmp_path):
    *_, int8 = made(pictures, AFFINE)
    assert run_as(int8, tmp_path)[0] == "QLinearConv"  # with one channel, the transposition is removed too
    *_, plain = made(pictures, None)
    assert run_as(plain, tmp_path)[0] == "QuantizeLinear"


def test_bytes_read_directly_have_the_outputs_of_floats(made, pictures):
    _, split, _, _, int8 = made(pictures, None)
    expected = run_model(int8, split)
    _, _, shipped, _, int8 = made(pictures, AFFINE)
    assert np.allclose(run_model(int8, shipped), expected, atol=1e-6)


def test_the_range_of_bytes_does_not_depend_on_samples(made, pictures):
    dim = np.clip(pictures, 100, 150)
    *_, path, int8 = made(dim, AFFINE)
    (found,) = byte_ranges(onnx.load(path)).values()
    assert (found.lowest, found.highest) == (-127 / 128, 1.0)
    assert (
        operators(int8).count("QuantizeLinear") == operators(made(dim, None)[4]).count("QuantizeLinear") - 1
    )


def test_signed_activations_read_the_same_bytes_as_signed_integers(made, pictures, tmp_path):
    _, _, shipped, path, int8 = made(pictures, AFFINE, target="arm64")
    index = GraphIndex.of(onnx.load(int8).graph)
    first = next(node for node in index.nodes if node.op_type == "Conv")
    # ONNX Runtime does not fuse a convolution of unsigned bytes whose result is signed.
    dequantize = index.maker(first.input[0], "DequantizeLinear")
    assert dequantize is not None
    assert index.constant(dequantize.input[2]) == np.int8(127 - 128)  # the mean is byte 127
    assert index.element_type(index.maker(dequantize.input[0]).input[0]) == onnx.TensorProto.FLOAT
    assert parity(run_model(path, shipped), run_model(int8, shipped)).sqnr_db > 20
    found = run_as(int8, tmp_path, signed=True)
    assert "Conv" not in found
    assert found.index("QuantizeLinear") < found.index("QLinearConv")


@pytest.mark.parametrize(
    ("values", "cause"),
    [
        (np.full((2, 1, 4, 4), 0.003, np.float32), "is not (byte - mean) / std of whole bytes"),
        (np.full((2, 1, 4, 4), 1.0 + 1 / 128, np.float32), "is not (byte - mean) / std of whole bytes"),
        (np.full((2, 1, 4, 4), -1.0, np.float32), "is not (byte - mean) / std of whole bytes"),
    ],
)
def test_pictures_that_do_not_come_from_bytes_are_rejected(values, cause):
    with pytest.raises(DataError) as caught:
        as_shipped(Split({"image": values}, np.zeros(2, np.int64)), AFFINE)
    assert caught.value.place == "export.preprocess: sample 0 of 'image'"
    assert caught.value.cause == cause


@pytest.mark.parametrize(
    ("inputs", "config", "message"),
    [
        ({"a": (2, 3)}, AFFINE, "input 'a' is not float32 \\[N, C, H, W\\]"),
        (
            {"a": (2, 3, 4, 4), "b": (2, 3)},
            AFFINE,
            "export.preprocess.input: names none of the inputs a, b",
        ),
        ({"a": (2, 3, 4, 4)}, PreprocessConfig(input="x"), "names none of the inputs a; set it to"),
        ({"a": (2, 3, 4, 4)}, PreprocessConfig(mean=(1.0, 2.0)), "has 2 values, but the pictures have 3"),
    ],
)
def test_the_recipe_must_fit_the_inputs(inputs, config, message):
    arrays = {name: np.zeros(shape, np.float32) for name, shape in inputs.items()}
    with pytest.raises(DataError, match=message):
        as_shipped(Split(arrays, np.zeros(2, np.int64)), config)


def test_without_preprocessing_a_split_does_not_change(splits):
    assert as_shipped(splits.evaluation, None) is splits.evaluation


def test_softmax(made, pictures):
    module, split, shipped, path, int8 = made(pictures, AFFINE, PostprocessConfig(kind="softmax"))
    scores = predict(module, split).astype(np.float64)
    expected = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    assert np.allclose(run_model(path, shipped), expected, atol=1e-5)
    assert np.allclose(run_model(int8, shipped).sum(axis=1), 1.0, atol=1e-6)
    assert operators(int8)[-1] == "Softmax"
    assert [output.name for output in onnx.load(int8).graph.output] == ["probabilities"]


def test_argmax(made, pictures):
    module, split, shipped, path, int8 = made(pictures, AFFINE, PostprocessConfig(kind="argmax"))
    classes = run_model(path, shipped)
    np.testing.assert_array_equal(classes, predict(module, split).argmax(axis=1))
    np.testing.assert_array_equal(run_model(int8, shipped), run_scores(int8, shipped).argmax(axis=1))


def test_top_k_outputs_classes_first(made, pictures):
    module, split, shipped, path, int8 = made(pictures, AFFINE, PostprocessConfig(kind="topk", k=2))
    session = onnxruntime.InferenceSession(str(path))
    assert [(o.name, o.shape) for o in session.get_outputs()] == [
        ("classes", ["batch", 2]),
        ("scores", ["batch", 2]),
    ]
    classes, scores = session.run(None, dict(shipped.inputs))
    expected = predict(module, split)
    np.testing.assert_array_equal(classes, np.argsort(-expected, axis=1)[:, :2])
    assert np.allclose(scores, -np.sort(-expected, axis=1)[:, :2], atol=1e-5)
    assert run_model(int8, shipped).shape == (40, 2)


def test_scores_before_the_postprocessing_can_be_read(made, pictures):
    module, split, shipped, path, _ = made(pictures, None, PostprocessConfig(kind="argmax"))
    assert np.allclose(run_scores(path, shipped), predict(module, split), atol=1e-5)
    *_, plain = made(pictures, None)
    assert np.allclose(run_scores(plain, split), run_model(plain, split))


def test_repairs_are_judged_by_the_scores(made, pictures, tmp_path):
    _, _, shipped, path, _ = made(pictures, AFFINE, PostprocessConfig(kind="argmax"))
    out = tmp_path / "repaired.onnx"
    repairs = RepairSettings(("bias",), FallbackConfig(max_drop=0.9))
    found = quantize_repaired(
        onnx.load(path), out, hold_out(shipped.inputs, shipped.labels),
        Int8Settings(TARGETS["x86-vnni"]), repairs, progress=SILENT,
    )  # fmt: skip
    (report,) = found.repairs
    assert 10 < report.sqnr_db_before < 80  # classes would be equal or completely different
    assert run_model(out, shipped).dtype == np.int64
    assert run_as(out, tmp_path)[0] == "QLinearConv"


def test_more_classes_than_the_network_has_are_rejected(made, pictures):
    with pytest.raises(ExportError, match=r"export\.postprocess\.k: is 4, but the network has 3 classes"):
        made(pictures, None, PostprocessConfig(kind="topk", k=4))


def test_a_build_ships_bytes_and_classes(project):
    # The factory's pictures become bytes, like those of a camera.
    project.edit(
        "shapes.py",
        '    return Split({"image": images}, labels.astype(np.int64))',
        "    images = np.clip(np.rint(images * 50 + 127), 0, 255).astype(np.float32)\n"
        '    return Split({"image": (images - 127) / 128}, labels.astype(np.int64))',
    )
    project.edit(
        "recipe.toml",
        "[quantize]",
        '[export.preprocess]\n[export.postprocess]\nkind = "topk"\nk = 2\n\n[quantize]',
    )
    outcome = project.build(until="parity")
    found_parity = outcome.steps["parity"]
    assert found_parity.export.sqnr_db > 90
    evaluation = read_evaluation(project.entry("parity") / "evaluation.npz")
    assert evaluation.feeds["image"].dtype == np.uint8
    assert evaluation.feeds["image"].shape[1:] == (8, 8, 1)
    model = project.entry("quantize") / "model.onnx"
    # If int8 is not faster, the slow operators are profiled with the bytes that the model reads.
    resolved = resolve_recipe(read_recipe(project.recipe), project.folder, SILENT)
    assert "not faster than float on this CPU" in GateStep(resolved).blame(model)
    split = Split(evaluation.feeds, evaluation.labels)
    found = run_model(model, split)[:, 0]
    assert (found == evaluation.labels).mean() >= found_parity.torch_accuracy - 0.1
    with np.load(project.entry("parity") / "golden.npz") as golden:
        assert golden["expected.classes"].shape == (8, 2)
        assert golden["image"].dtype == np.uint8


def test_a_build_of_pictures_that_are_not_bytes_stops_before_training(project):
    project.edit("recipe.toml", "[quantize]", "[export.preprocess]\n\n[quantize]")
    with pytest.raises(DataError, match=r"is not .byte - mean. / std of whole bytes"):
        project.build()
    assert project.events("start") == []


@pytest.mark.parametrize("preprocess", [None, AFFINE, BY_CHANNEL], ids=["floats", "affine", "by channel"])
@pytest.mark.parametrize("kind", [None, "softmax", "argmax", "topk"])
def test_the_network_alone_returns_its_scores(made, pictures, preprocess, kind, tmp_path):
    k = {"k": 2} if kind == "topk" else {}
    postprocess = None if kind is None else PostprocessConfig(kind=kind, **k)
    module, split, _, path, _ = made(pictures, preprocess, postprocess)
    alone = network_alone(onnx.load(path))
    onnx.checker.check_model(alone, full_check=True)
    onnx.save(alone, tmp_path / "alone.onnx")
    assert np.allclose(run_model(tmp_path / "alone.onnx", split), predict(module, split), atol=1e-4)
    if preprocess is kind is None:
        assert alone.SerializeToString() == onnx.load(path).SerializeToString()


def test_a_teacher_with_bytes_and_classes_has_the_scores_of_its_network(made, pictures):
    module, split, _, path, _ = made(pictures, BY_CHANNEL, PostprocessConfig(kind="topk", k=2))
    teacher = OnnxTeacher(path, split.first(1), "stage.teacher.model")
    assert np.allclose(predict(teacher, split), predict(module, split), atol=1e-4)


def joined(nodes, outputs):
    """The nodes of a graph after `join_bytes`.

    The graph dequantizes and quantizes a picture of bytes with the same qparams, followed by `nodes`.
    """
    value = onnx.helper.make_tensor_value_info
    qparams = [
        onnx.numpy_helper.from_array(np.float32(0.5), "s"),
        onnx.numpy_helper.from_array(np.uint8(3), "z"),
    ]
    start = [
        onnx.helper.make_node("DequantizeLinear", ["x", "s", "z"], ["real"]),
        onnx.helper.make_node("QuantizeLinear", ["real", "s", "z"], ["bytes"]),
        onnx.helper.make_node("DequantizeLinear", ["bytes", "s", "z"], ["again"]),
    ]
    inputs = [value("x", onnx.TensorProto.UINT8, [4]), value("c", onnx.TensorProto.BOOL, [])]
    given = [value(name, kind, [4]) for name, kind in outputs.items()]
    graph = onnx.helper.make_graph([*start, *nodes], "g", inputs, given, qparams)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    join_bytes(model)
    onnx.checker.check_model(model, full_check=True)
    return [(node.op_type, list(node.input)) for node in model.graph.node]


def test_bytes_are_read_directly():
    found = joined([onnx.helper.make_node("Relu", ["again"], ["y"])], {"y": onnx.TensorProto.FLOAT})
    assert found == [("DequantizeLinear", ["x", "s", "z"]), ("Relu", ["again"])]


def test_tensors_that_a_branch_or_an_output_uses_are_kept():
    value = onnx.helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, [4])
    bodies = {
        key: onnx.helper.make_graph([onnx.helper.make_node("Relu", [name], ["out"])], key, [], [value])
        for key, name in {"then_branch": "real", "else_branch": "again"}.items()
    }
    nodes = [onnx.helper.make_node("If", ["c"], ["y"], **bodies)]
    found = joined(nodes, {"y": onnx.TensorProto.FLOAT})
    assert [operator for operator, _ in found] == ["DequantizeLinear", "DequantizeLinear", "If"]
    found = joined(nodes, {"y": onnx.TensorProto.FLOAT, "bytes": onnx.TensorProto.UINT8})
    assert [operator for operator, _ in found][:3] == [
        "DequantizeLinear",
        "QuantizeLinear",
        "DequantizeLinear",
    ]
