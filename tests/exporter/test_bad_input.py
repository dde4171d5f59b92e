"""Models and samples that cannot be quantized, with their errors; and unusual ones that can."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from bench.core.errors import DataError, ModelError
from exporter.errors import ExportError
from exporter.options import CalibrationMethod
from exporter.pipeline.quantize_file import quantize_file, quantize_weights_file

GENERATOR = np.random.default_rng(0)
WEIGHT = GENERATOR.standard_normal((4, 3, 3, 3)).astype(np.float32)
TABLE = GENERATOR.standard_normal((20, 16)).astype(np.float32)
PRODUCT = GENERATOR.standard_normal((16, 5)).astype(np.float32)
X = GENERATOR.standard_normal((12, 3, 8, 8)).astype(np.float32)
CONV = helper.make_node("Conv", ["x", "w"], ["y"], name="conv")
METHODS = CalibrationMethod.__args__
FLOAT, DOUBLE, BYTES = TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.UINT8


@pytest.fixture
def quantize(tmp_path):
    """A function that quantizes a model with samples, and returns the int8 model and its first output."""

    def run(model, feeds, **options):
        data, out = tmp_path / "data.npz", tmp_path / "int8.onnx"
        np.savez(data, **feeds)
        path = tmp_path / "model.onnx"
        path.write_bytes(model.SerializeToString())
        quantize_file(path, data, out, **{"target": "x86-vnni", **options})
        found = onnxruntime.InferenceSession(str(out)).run(None, dict(feeds))[0]
        return onnx.load(out), found

    return run


def make(nodes, constants, x=(FLOAT, ("batch", 3, 8, 8)), y=(FLOAT, None), *, domains=()):
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", *x)],
        [helper.make_tensor_value_info("y", *y)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    imports = [helper.make_opsetid("", 18), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=imports, ir_version=9)


def rows(kind=np.float32):
    return X.reshape(12, 3, 64)[:, :, :16].astype(kind)


def product(kind, weight=PRODUCT):
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")]
    return make(nodes, {"w": weight}, (kind, ("batch", 3, 16)), (kind, None))


def integer_only():
    weight = {"w": np.ones((16, 5), np.uint8)}
    nodes = [helper.make_node("MatMulInteger", ["x", "w"], ["y"], name="product")]
    return make(nodes, weight, (BYTES, ("batch", 3, 16)), (TensorProto.INT32, None))


def linear_only():
    constants = {
        "s": np.float32(0.1),
        "z": np.uint8(128),
        "w": np.ones((4, 3, 3, 3), np.int8),
        "wz": np.int8(0),
    }
    nodes = [helper.make_node("QLinearConv", ["x", "s", "z", "w", "s", "wz", "s", "z"], ["y"], name="conv")]
    return make(nodes, constants, (BYTES, ("batch", 3, 8, 8)), (BYTES, None))


def constants_dequantized():
    weight = numpy_helper.from_array(np.ones((4, 3, 3, 3), np.int8))
    nodes = [
        helper.make_node("Constant", [], ["w8"], value=weight),
        helper.make_node("DequantizeLinear", ["w8", "s"], ["w"], name="weight"),
        CONV,
    ]
    return make(nodes, {"s": np.float32(0.1)})


def spoiled(value):
    weight = WEIGHT.copy()
    weight[0, 0, 0, 0] = value
    return make([CONV], {"w": weight})


def optional(name):
    kind = helper.make_tensor_type_proto(FLOAT, None)
    return helper.make_value_info(name, helper.make_optional_type_proto(kind))


def unlike(inputs=1, outputs=1, nodes=1, given=None):
    """A product, without parts of the graph or with another kind of input."""
    model = product(FLOAT)
    graph = model.graph
    if given is not None:
        kind = given.type.WhichOneof("value").removesuffix("_type")
        first = (
            helper.make_node("SequenceAt", ["x", "zero"], ["first"])
            if kind == "sequence"
            else helper.make_node("OptionalGetElement", ["x"], ["first"])
        )
        graph.initializer.append(numpy_helper.from_array(np.int64(0), "zero"))
        graph.node.insert(0, first)
        graph.node[1].input[0] = "first"
        graph.input[0].CopyFrom(given)
    if not inputs:
        graph.initializer.append(numpy_helper.from_array(rows(), "x"))
    del graph.input[inputs:], graph.output[outputs:], graph.node[nodes if given is None else 2 :]
    return model


def zip_map():
    """A classifier as converters of scikit-learn write it: probabilities as a sequence of maps."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y"], name="product"),
        helper.make_node("ZipMap", ["y"], ["z"], domain="ai.onnx.ml", classlabels_int64s=range(5)),
    ]
    model = make(nodes, {"w": PRODUCT}, (FLOAT, ("batch", 16)), domains=("ai.onnx.ml",))
    kind = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(FLOAT, []))
    model.graph.output.append(helper.make_value_info("z", helper.make_sequence_type_proto(kind)))
    return model


MODELS = {
    "integer operators": (integer_only, rows(np.uint8), "is quantized already (node 'product')"),
    "QLinearConv": (linear_only, X.astype(np.uint8), "is quantized already (node 'conv')"),
    "weights in a Constant": (constants_dequantized, X, "is quantized already (node 'weight')"),
    "own operator": (
        lambda: make([helper.make_node("Magic", ["x"], ["y"], domain="my.ops")], {}, domains=("my.ops",)),
        X,
        "uses the operator my.ops:Magic, which this ONNX Runtime does not know",
    ),
    "unknown operator": (
        lambda: make([helper.make_node("Magic", ["x"], ["y"])], {}),
        X,
        "uses the operator Magic, which this ONNX Runtime does not know",
    ),
    "NaN weight": (lambda: spoiled(np.nan), X, "weight 'w' holds NaN or infinity"),
    "infinite weight": (lambda: spoiled(-np.inf), X, "weight 'w' holds NaN or infinity"),
    "no input shape": (lambda: make([CONV], {"w": WEIGHT}, (FLOAT, None)), X, "input 'x' has no shape"),
    "no input": (lambda: unlike(inputs=0), X, "has no inputs, so its outputs are constant"),
    "no output": (lambda: unlike(outputs=0), X, "has no outputs"),
    "empty graph": (
        lambda: unlike(inputs=0, outputs=0, nodes=0), X, "computes nothing: its graph is empty"
    ),
    "sequence input": (
        lambda: unlike(given=helper.make_tensor_sequence_value_info("x", FLOAT, None)),
        X,
        "input 'x' has the type sequence, but only tensors are supported",
    ),
    "optional input": (
        lambda: unlike(given=optional("x")),
        X,
        "input 'x' has the type optional, but only tensors are supported",
    ),
    "ZipMap": (
        zip_map, rows()[:, 0], "'z' is a map, but only tensors and sequences of tensors are supported"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MODELS)
def test_models_that_are_refused(case, quantize, tmp_path):
    build, samples, cause = MODELS[case]
    with pytest.raises(ModelError) as caught:
        quantize(build(), {"x": samples})
    assert caught.value.cause == cause
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "int8.onnx").exists()


@pytest.mark.parametrize(
    ("samples", "line"),
    [
        (X[:0], "data.npz: contains no samples; add at least one"),
        (np.where(X > 2, np.nan, X), "data.npz: feed 'x' holds NaN or infinity; clean the data"),
        (np.where(X > 2, np.inf, X), "data.npz: feed 'x' holds NaN or infinity; clean the data"),
        (np.full_like(X, 0.5), "calibration: every value of every sample is 0.5; provide samples"),
    ],
)
@pytest.mark.parametrize("method", ["minmax", "entropy"])
def test_samples_that_are_refused(samples, line, method, quantize, tmp_path):
    with pytest.raises(DataError) as caught:
        quantize(make([CONV], {"w": WEIGHT}), {"x": samples.astype(np.float32)}, method=method)
    assert line in str(caught.value)
    assert not (tmp_path / "int8.onnx").exists()


def test_one_of_several_inputs_may_be_constant(quantize):
    model = make(
        [helper.make_node("Add", ["x", "m"], ["s"]), helper.make_node("Conv", ["s", "w"], ["y"])],
        {"w": WEIGHT},
    )
    model.graph.input.append(helper.make_tensor_value_info("m", FLOAT, ("batch", 3, 8, 8)))
    assert np.isfinite(quantize(model, {"x": X, "m": np.zeros_like(X)})[1]).all()


@pytest.mark.parametrize("method", ["minmax", "entropy"])
def test_a_tensor_of_infinite_range_names_the_nodes_to_leave_in_float(quantize, method):
    nodes = [
        helper.make_node("Relu", ["x"], ["r"], name="relu"),
        helper.make_node("Log", ["r"], ["l"], name="log"),
        helper.make_node("Conv", ["l", "w"], ["y"], name="conv"),
    ]
    with pytest.raises(DataError) as caught:  # with positive weights, the output is infinite but not NaN
        quantize(make(nodes, {"w": abs(WEIGHT)}), {"x": X}, method=method)
    assert (caught.value.place, caught.value.fix) == (
        "tensor l",
        "leave log, conv in float, or clean the data",
    )


def test_infinite_bounds_of_a_clip_are_not_used_as_a_range(quantize):
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        helper.make_node("Clip", ["c", "low", "high"], ["y"], name="clip"),
    ]
    bounds = {"low": np.float32(-np.inf), "high": np.float32(np.inf)}
    assert_finite(*quantize(make(nodes, {"w": WEIGHT, **bounds}), {"x": X}))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("target", ["x86-vnni", "x86-avx2", "arm64", "portable"])
def test_channels_of_zeros_have_finite_scales(quantize, method, target):
    weight = WEIGHT.copy()
    weight[[0, 2]] = 0
    nodes = [helper.make_node("Conv", ["x", "w", "b"], ["y"], name="conv")]
    bias = np.array([3, 0, -7, 1], np.float32)
    model, found = quantize(make(nodes, {"w": weight, "b": bias}), {"x": X}, method=method, target=target)
    assert_finite(model, found)
    assert np.allclose(found[:, 0], 3, atol=0.2)
    assert np.allclose(found[:, 2], -7, atol=0.2)


def test_a_product_with_a_column_of_zeros_has_finite_scales(quantize):
    weight = PRODUCT.copy()
    weight[:, 1] = 0
    model, found = quantize(product(FLOAT, weight), {"x": rows()})
    assert_finite(model, found)
    assert (found[..., 1] == 0).all()


def test_integer_inputs_are_accepted(quantize):
    ids = GENERATOR.integers(0, 20, (12, 7))
    model, found = quantize(embedding(), {"x": ids})
    assert "QuantizeLinear" in {node.op_type for node in model.graph.node}
    wanted = TABLE[ids] @ PRODUCT
    assert np.corrcoef(found.ravel(), wanted.ravel())[0, 1] > 0.999


def test_an_index_beyond_the_table_is_an_error_of_the_samples(quantize):
    with pytest.raises(
        DataError, match=r"npz: holds the index \d+, but the table of Gather 'gather' has 20 rows"
    ):
        quantize(embedding(), {"x": np.arange(12 * 7).reshape(12, 7)})


def test_one_line_reports_an_index_beyond_the_table(quantize, capfd):
    """Also in a sample that only calibration reads; ONNX Runtime's log adds no second line."""
    ids = GENERATOR.integers(0, 20, (512, 7))
    ids[101] = 50
    with pytest.raises(DataError, match="holds the index 50, but the table of Gather 'gather' has 20 rows"):
        quantize(embedding(), {"x": ids})
    assert capfd.readouterr() == ("", "")


def test_integer_feeds_of_another_type_are_refused(quantize):
    with pytest.raises(DataError, match="feed 'x' has dtype int32; convert it to int64"):
        quantize(embedding(), {"x": GENERATOR.integers(0, 20, (12, 7)).astype(np.int32)})


def embedding():
    nodes = [
        helper.make_node("Gather", ["table", "x"], ["e"], name="gather"),
        helper.make_node("MatMul", ["e", "w"], ["y"], name="product"),
    ]
    return make(nodes, {"table": TABLE, "w": PRODUCT}, (TensorProto.INT64, ("batch", "length")))


@pytest.mark.parametrize(
    "shape", [("batch", 3, 8, 8), ("batch", 3, "height", "width"), ("a", "b", "c", "d")]
)
def test_variable_sizes_and_outputs_without_shape_are_accepted(quantize, shape):
    assert_finite(*quantize(make([CONV], {"w": WEIGHT}, (FLOAT, shape)), {"x": X}))


def test_a_float64_network_keeps_its_types(quantize):
    model, found = quantize(product(DOUBLE, PRODUCT.astype(np.float64)), {"x": rows(np.float64)})
    assert "QuantizeLinear" in {node.op_type for node in model.graph.node}
    assert found.dtype == np.float64
    assert np.corrcoef(found.ravel(), (rows() @ PRODUCT).ravel())[0, 1] > 0.99


@pytest.mark.parametrize("values", [np.array(["a"] * 12), np.array([b"a"] * 12)])
def test_texts_as_inputs_are_refused(quantize, values):
    with pytest.raises(
        DataError, match=r"input 't' has type tensor\(string\), but only tensors of numbers"
    ):
        quantize(texts(), {"x": rows(), "t": values})


def test_the_weights_of_a_model_that_reads_texts_can_have_4_bits(tmp_path):
    path, out = tmp_path / "model.onnx", tmp_path / "int4.onnx"
    onnx.save(texts(), path)
    assert quantize_weights_file(path, out).made.products == 1


def texts():
    model = product(FLOAT)
    model.graph.node.append(helper.make_node("Identity", ["t"], ["u"]))
    model.graph.input.append(helper.make_tensor_value_info("t", TensorProto.STRING, ("batch",)))
    model.graph.output.append(helper.make_tensor_value_info("u", TensorProto.STRING, ("batch",)))
    return model


def test_a_model_with_nothing_to_quantize_is_refused(quantize):
    nodes = [helper.make_node("Tanh", ["x"], ["y"], name="tanh")]
    with pytest.raises(ExportError, match="has nothing that can run in int8"):
        quantize(make(nodes, {}), {"x": X})


def test_a_contributed_operator_between_convolutions(quantize):
    """Shape inference stops at the operator; the convolution before it is still quantized."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="first"),
        helper.make_node("Gelu", ["c"], ["g"], name="gelu", domain="com.microsoft"),
        helper.make_node("Conv", ["g", "v"], ["y"], name="second"),
    ]
    constants = {"w": WEIGHT, "v": np.ones((2, 4, 1, 1), np.float32)}
    y = (FLOAT, ("batch", 2, 6, 6))
    model, found = quantize(make(nodes, constants, y=y, domains=("com.microsoft",)), {"x": X})
    assert_finite(model, found)
    first = next(node for node in model.graph.node if node.name == "first")
    assert first.input[0] == "x_DequantizeLinear_Output"


def assert_finite(model, output):
    floats = [i for i in model.graph.initializer if i.data_type == FLOAT]
    scales = {n.input[1] for n in model.graph.node if n.op_type in {"QuantizeLinear", "DequantizeLinear"}}
    assert scales
    for value in floats:
        if value.name in scales:
            scale = numpy_helper.to_array(value)
            assert np.isfinite(scale).all()
            assert (scale > 0).all()
    assert np.isfinite(output).all()
