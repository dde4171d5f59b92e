"""`edgeproof quantize` on float .onnx files that edgeproof did not export."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import nullcontext

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from bench.core.errors import DataError, ModelError
from bench.core.progress import SilentProgress
from bench.inputs.runtime import OLDEST, stated_version
from exporter.errors import ExportError
from exporter.inspection.audit import audit
from exporter.pipeline.quantize_file import quantize_file, quantize_weights_file
from exporter.quantization.int8_repaired import RepairSettings


class Watcher(SilentProgress):
    """Counts the batches of every task."""

    def __init__(self):
        self.batches = 0

    def task(self, description, total):
        return nullcontext(self)

    def advance(self, count=1, note=""):
        self.batches += count


def save(folder, nodes, initializers, *, batch="batch", output=(4, 4, 4), name="model.onnx"):
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [batch, 3, 8, 8])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [batch, *output])],
        [numpy_helper.from_array(value, key) for key, value in initializers.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, folder / name)
    return folder / name


@pytest.fixture
def weights():
    generator = np.random.default_rng(0)
    norm = {f"bn.{n}": generator.uniform(0.5, 1.5, 4).astype(np.float32) for n in ("s", "b", "m", "v")}
    return {"w": generator.standard_normal((4, 3, 3, 3)).astype(np.float32), **norm}


@pytest.fixture
def model(tmp_path, weights):
    """Pad, Conv, BatchNormalization, Relu and spatial mean, which are rewritten before quantization."""
    pads = np.array([0, 0, 0, 0, 0, 0, 1, 1], np.int64)
    nodes = [
        helper.make_node("Pad", ["x", "pads"], ["padded"], name="pad"),
        helper.make_node("Conv", ["padded", "w"], ["c"], name="conv", strides=[2, 2]),
        helper.make_node("BatchNormalization", ["c", "bn.s", "bn.b", "bn.m", "bn.v"], ["n"], name="bn"),
        helper.make_node("Relu", ["n"], ["r"], name="relu"),
        helper.make_node("ReduceMean", ["r", "axes"], ["y"], name="mean", keepdims=1),
    ]
    axes = np.array([-1, -2], np.int64)
    return save(tmp_path, nodes, {**weights, "pads": pads, "axes": axes}, output=(4, 1, 1))


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "calibration.npz"
    np.savez(path, x=np.random.default_rng(1).standard_normal((40, 3, 8, 8)).astype(np.float32))
    return path


def test_norm_padding_and_mean_leave_no_float_operators(model, data, tmp_path):
    out = tmp_path / "int8.onnx"
    found = quantize_file(model, data, out, target="x86-vnni")
    assert (found.made.target, found.made.samples, found.model) == ("x86-vnni", 40, out)
    inspected = audit(out)
    assert inspected.int8_mac_ratio == 1.0
    assert not {"Pad", "BatchNormalization", "ReduceMean"} & inspected.operators.keys()


@pytest.mark.parametrize("lifted", [True, False], ids=["initializers", "Constant nodes"])
def test_a_separate_bias_and_norm_leave_no_trace(data, weights, tmp_path, lifted):
    steps = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        helper.make_node("Add", ["c", "bias"], ["a"], name="add"),
        helper.make_node("BatchNormalization", ["a", "bn.s", "bn.b", "bn.m", "bn.v"], ["n"], name="bn"),
        helper.make_node("Mul", ["n", "half"], ["h"], name="mul"),
        helper.make_node("Relu", ["h"], ["y"], name="relu"),
    ]
    contents = {**weights, "bias": np.ones((1, 4, 1, 1), np.float32), "half": np.float32(0.5)}
    nodes = (
        []
        if lifted
        else [
            helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.asarray(content)))
            for name, content in contents.items()
        ]
    )
    model = save(tmp_path, [*nodes, *steps], contents if lifted else {}, output=(4, 6, 6))
    out = tmp_path / "int8.onnx"
    quantize_file(model, data, out, target="x86-vnni")
    kept = [n.op_type for n in onnx.load(out).graph.node if "Linear" not in n.op_type]
    assert kept == ["Conv"]  # its rounding limits the values from below, as the Relu does


def test_the_command_needs_no_torch(model, data, tmp_path):
    out = tmp_path / "int8.onnx"
    script = (
        "import sys; sys.modules['torch'] = None\n"
        "from exporter.cli import main\n"
        f"sys.argv = ['edgeproof', 'quantize', {str(model)!r}, '--data', {str(data)!r},"
        f" '--out', {str(out)!r}, '--method', 'mse', '--goal', 'size', '--json']\n"
        "main()"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    answer = json.loads(run.stdout)
    assert {"model", "target", "seconds", "peak_rss_bytes"} <= answer.keys()
    assert answer["method"] == "mse"
    assert out.stat().st_size == answer["size_bytes"]


def test_a_fixed_batch_is_kept(tmp_path, weights, data):
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], name="conv")]
    model = save(tmp_path, nodes, {"w": weights["w"]}, batch=4, output=(4, 6, 6))
    assert quantize_file(model, data, tmp_path / "int8.onnx").made.samples == 40


def test_samples_that_do_not_fill_batches_of_fixed_size_are_refused(tmp_path, weights, data):
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], name="conv")]
    model = save(tmp_path, nodes, {"w": weights["w"]}, batch=7, output=(4, 6, 6))
    with pytest.raises(DataError, match="40 samples do not fill batches of 7"):
        quantize_file(model, data, tmp_path / "int8.onnx")


@pytest.mark.parametrize("method", ["minmax", "entropy"])
def test_the_storage_of_the_samples_does_not_matter(model, data, tmp_path, method):
    with np.load(data) as arrays:
        x = arrays["x"]
    stored = {
        "compressed": lambda path: np.savez_compressed(path, x=x, labels=np.arange(40)),
        "turned": lambda path: np.savez(path, x=np.asfortranarray(x)),
        "foreign": lambda path: np.savez(path, x=x.astype(">f4")),
    }
    wanted = quantize_file(model, data, tmp_path / "int8.onnx", method=method).sha256
    for name, store in stored.items():
        path = tmp_path / f"{name}.npz"
        store(path)
        assert quantize_file(model, path, tmp_path / "int8.onnx", method=method).sha256 == wanted


def test_a_sample_that_is_not_finite_is_refused(model, tmp_path):
    x = np.zeros((40, 3, 8, 8), np.float32)
    x[-1, 0, 0, 0] = np.nan
    path = tmp_path / "nan.npz"
    np.savez(path, x=x)
    with pytest.raises(DataError, match="feed 'x' holds NaN or infinity; clean the data"):
        quantize_file(model, path, tmp_path / "int8.onnx")
    assert not (tmp_path / "int8.onnx").exists()


def test_a_quantized_model_is_refused(model, data, tmp_path):
    out = tmp_path / "int8.onnx"
    quantize_file(model, data, out)
    with pytest.raises(ModelError, match="quantized already"):
        quantize_file(out, data, tmp_path / "again.onnx")
    assert not (tmp_path / "again.onnx").exists()


@pytest.mark.parametrize("stored", ["weights", "weights and input", "all"])
@pytest.mark.parametrize("options", [{}, {"method": "percentile"}, {"repairs": RepairSettings(("bias",))}])
def test_float16_files_are_quantized_with_their_types(tmp_path, weights, stored, options):
    """Weights in float16, converted or not, and inputs or outputs in float16."""
    half = onnx.TensorProto.FLOAT16
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        helper.make_node("Relu", ["c"], ["y"]),
    ]
    if stored == "weights":
        nodes[0].input[1] = "w32"
        nodes.insert(0, helper.make_node("Cast", ["w"], ["w32"], to=onnx.TensorProto.FLOAT))
    if stored == "weights and input":
        nodes[1].output[0] = "r"
        nodes.append(helper.make_node("Cast", ["r"], ["y"], to=onnx.TensorProto.FLOAT))
    path = save(tmp_path, nodes, {"w": weights["w"].astype(np.float16)}, output=(4, 6, 6))
    model = onnx.load(path)
    x = np.random.default_rng(1).standard_normal((40, 3, 8, 8)).astype(np.float32)
    if stored != "weights":
        model.graph.input[0].type.tensor_type.elem_type = half
        x = x.astype(np.float16)
    if stored == "all":
        model.graph.output[0].type.tensor_type.elem_type = half
    onnx.save(model, path)
    np.savez(tmp_path / "x.npz", x=x)
    out = tmp_path / "int8.onnx"
    quantize_file(path, tmp_path / "x.npz", out, target="x86-vnni", **options)
    assert audit(out).int8_mac_ratio == 1.0
    before, after = (onnxruntime.InferenceSession(str(file)).run(None, {"x": x})[0] for file in (path, out))
    assert before.dtype == after.dtype
    before, after = (found.astype(np.float32) for found in (before, after))
    assert np.linalg.norm(before - after) < 0.1 * np.linalg.norm(before)


def test_data_of_another_model_are_refused(model, tmp_path):
    path = tmp_path / "other.npz"
    np.savez(path, image=np.zeros((4, 3, 8, 8), np.float32))
    with pytest.raises(DataError, match="lacks the model's input 'x'"):
        quantize_file(model, path, tmp_path / "int8.onnx")


def test_stored_ranges_are_used_when_other_nodes_are_excluded(model, data, tmp_path):
    cache, out = tmp_path / "ranges", tmp_path / "int8.onnx"

    def run(**options):
        seen = Watcher()
        found = quantize_file(model, data, out, method="entropy", progress=seen, **options)
        return found.sha256, seen.batches

    plain, batches = run()
    assert batches > 0
    assert run(cache=cache) == (plain, batches)
    assert run(cache=cache) == (plain, 0)
    excluding = run(exclude=("mean",))[0]
    assert run(cache=cache, exclude=("mean",)) == (excluding, 0)
    # The output of the convolution itself needs a range only if its Relu is not fused.
    assert run(cache=cache, exclude=("relu",))[1] == batches
    assert run(cache=cache, exclude=("relu",))[1] == 0
    with np.load(data) as arrays:
        np.savez(data, x=arrays["x"] * 2)
    assert run(cache=cache)[1] == batches


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{", b'{"KEY": {"x": [NaN, 1]}}', b'{"KEY": {"x": [2, 1]}}']
)
def test_damaged_stored_ranges_are_collected_again(model, data, tmp_path, content):
    cache, out = tmp_path / "ranges", tmp_path / "int8.onnx"
    wanted = quantize_file(model, data, out, cache=cache).sha256
    (file,) = cache.glob("ranges-*")
    whole = file.read_bytes()
    key = file.stem.removeprefix("ranges-").encode()
    file.write_bytes(content.replace(b"KEY", key))
    assert quantize_file(model, data, out, cache=cache).sha256 == wanted
    assert file.read_bytes() == whole


def test_an_unknown_node_cannot_be_excluded(model, data, tmp_path):
    with pytest.raises(ExportError, match="no node 'nobody'"):
        quantize_file(model, data, tmp_path / "int8.onnx", exclude=("nobody",))


@pytest.fixture
def products(tmp_path):
    """A network of two Gemms with a Relu."""
    generator = np.random.default_rng(0)
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["h"], name="first"),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        helper.make_node("Gemm", ["r", "v"], ["y"], name="second"),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 64])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", 32])],
        [
            numpy_helper.from_array(generator.standard_normal(shape).astype(np.float32), name)
            for name, shape in (("w", (64, 96)), ("v", (96, 32)))
        ],
    )
    path = tmp_path / "products.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def test_weights_of_four_bits_need_no_samples_and_are_counted(products, tmp_path):
    out = tmp_path / "small.onnx"
    found = quantize_weights_file(products, out)
    assert (found.made.bits, found.made.products) == (4, 2)
    assert out.stat().st_size < products.stat().st_size / 3
    seen = audit(out)
    assert seen.macs == 64 * 96 + 96 * 32
    assert seen.int8_mac_ratio == 1.0
    assert audit(products).macs == seen.macs


def test_bits_from_the_command_line(products, tmp_path, command):
    out = tmp_path / "small.onnx"
    found = command("quantize", products, "--out", out, "--bits", 4, "--exclude", "second", "--json")
    assert found.code == 0, found.err
    assert json.loads(found.out)["products"] == 1


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (("--bits", 5), "--bits: 5 bits are not supported; choose 8 or 4"),
        (
            ("--bits", 4, "--repair", "bias"),
            "--repair: has no effect with 4 bits, because activations stay in float",
        ),
        (("--bits", 4, "--block-size", 17), "--block-size: 17 is not a valid block size"),
        ((), "--data: is missing, but 8 bits need calibration samples"),
    ],
)
def test_contradictory_options_are_refused(products, tmp_path, command, options, line):
    found = command("quantize", products, "--out", tmp_path / "small.onnx", *options)
    assert (found.code, found.out) == (2, "")
    assert found.err.startswith(f"error: {line}")
    assert not (tmp_path / "small.onnx").exists()


@pytest.mark.parametrize("spelling", ["model.onnx", "folder/../model.onnx", "link.onnx", "hard.onnx"])
def test_the_float_model_is_not_overwritten(model, data, tmp_path, command, spelling):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link.onnx").symlink_to(model)
    (tmp_path / "hard.onnx").hardlink_to(model)
    before = model.read_bytes()
    for options in (["--data", data], ["--bits", "4"]):
        ran = command("quantize", model, *options, "--out", tmp_path / spelling)
        assert ran.code == 2
        assert ran.err.endswith(f"would overwrite {model}, which is an input; choose another --out\n")
        assert model.read_bytes() == before


def test_the_samples_are_not_overwritten(model, data, tmp_path, command):
    before = data.read_bytes()
    assert command("quantize", model, "--data", data, "--out", data).code == 2
    assert data.read_bytes() == before


def test_weights_that_the_input_names_are_not_overwritten(model, data, tmp_path, command):
    """Writing `int8.onnx` may write `int8.onnx.data`, which is the weight file of the float model."""
    given = tmp_path / "given.onnx"
    onnx.save(
        onnx.load(model), given, save_as_external_data=True, location="int8.onnx.data", size_threshold=0
    )
    before = (tmp_path / "int8.onnx.data").read_bytes()
    ran = command("quantize", given, "--data", data, "--out", tmp_path / "int8.onnx")
    assert (ran.code, "int8.onnx.data, which is an input" in ran.err) == (2, True)
    assert (tmp_path / "int8.onnx.data").read_bytes() == before


def test_a_runtime_can_be_requested(model, data, tmp_path, command):
    out = tmp_path / "int8.onnx"
    ran = command("quantize", model, "--data", data, "--out", out, "--onnxruntime", ">=1.24", "--json")
    assert (ran.code, json.loads(ran.out)["min_onnxruntime"]) == (0, "1.22")
    assert stated_version(out) == OLDEST


@pytest.mark.parametrize(
    ("asked", "line"),
    [
        ("1.24", "'1.24' is not a requirement on ONNX Runtime: write it as \">=1.22\""),
        (">=1.9", "1.9 is older than 1.22, the oldest ONNX Runtime that edgeproof supports"),
    ],
)
def test_an_invalid_runtime_is_refused(model, data, command, asked, line):
    out = model.with_name("o.onnx")
    ran = command("quantize", model, "--data", data, "--out", out, "--onnxruntime", asked)
    assert ran.code == 2
    assert ran.err == f"error: --onnxruntime: {line}; name the oldest version that must run the model\n"
    assert not out.exists()


def test_a_network_that_the_runtime_cannot_run_is_refused_before_calibration(
    model, data, tmp_path, command
):
    newer = onnx.load(model)
    newer.opset_import[0].version = 24
    newer.ir_version = 10
    onnx.save(newer, tmp_path / "newer.onnx")
    quantize = ("quantize", tmp_path / "newer.onnx", "--data", data, "--out", tmp_path / "o.onnx")
    ran = command(*quantize, "--onnxruntime", ">=1.22")
    assert (ran.code, ran.err) == (
        2,
        f"error: {tmp_path}/newer.onnx: cannot run on ONNX Runtime 1.22: opset 24 requires 1.24; "
        'set onnxruntime to ">=1.24", or change the network\n',
    )
    assert not (tmp_path / "o.onnx").exists()
    assert (
        command(*quantize).code == 0
    )  # no runtime was requested; the file states the version that it needs
    assert stated_version(tmp_path / "o.onnx") == (1, 24)


def test_layers_from_the_command_line(model, data, tmp_path, command):
    out = tmp_path / "int8.onnx"
    quantize_file(model, data, out)
    found = command("inspect", out, "--layers", "--float", model, "--data", data, "--json")
    assert found.code == 0, found.err
    layers = json.loads(found.out)["layers"]
    assert layers
    text = command("inspect", out, "--layers", "--float", model, "--data", data)
    assert f"{layers[0]['sqnr_db']:6.1f} dB" in text.out
    alone = command("inspect", out, "--layers", "--data", data)
    assert (alone.code, alone.out) == (2, "")
    assert "there is no float model to compare with" in alone.err
