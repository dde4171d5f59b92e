"""Compare int8 models with and without a rewrite, interleaved; run by hand, a minute.

    python tests/perf/folding.py

Each line is the time of one sample (p25, p10 to p50) on one thread, and the SQNR to float.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import patch

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from exporter.graphs import rewrites
from exporter.pipeline.quantize_file import quantize_file
from exporter.quantization import qdq

REPEATS, SAMPLES = 100, 64
RANDOM = np.random.default_rng(0)


class Graph:
    """A graph under construction; `add` appends a node and returns the name of its result."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def add(self, kind: str, *inputs: object, **attributes: object) -> str:
        name = f"{kind}{len(self.nodes)}"
        names = [value if isinstance(value, str) else self.constant(value) for value in inputs]
        self.nodes.append(helper.make_node(kind, names, [name], name=name, **attributes))
        return name

    def constant(self, value: object) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, np.float32), name))
        return name

    def model(self, result: str, shape: list[int]) -> onnx.ModelProto:
        self.nodes.append(helper.make_node("Identity", [result], ["y"], name="y"))
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *shape])
        y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
        graph = helper.make_graph(self.nodes, "g", [x], [y], self.constants)
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        return onnx.shape_inference.infer_shapes(made)


def normal(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape) / np.sqrt(np.prod(shape[1:]) if len(shape) == 4 else shape[0])


def layers(activate: Callable[[Graph, str], str], shape: list[int], wide: int) -> onnx.ModelProto:
    """Three pairs of layers, `shape[-1]` x `wide` and back."""
    graph, value = Graph(), "x"
    for _ in range(3):
        inner = graph.add(
            "Add", graph.add("MatMul", value, normal(shape[-1], wide)), 0.1 * normal(wide, 1)[:, 0]
        )
        value = graph.add("MatMul", activate(graph, inner), normal(wide, shape[-1]))
        value = graph.add("Add", value, RANDOM.standard_normal(shape[-1]))
    return graph.model(value, shape)


def convolutions(activate: Callable[[Graph, str], str], *, separate: bool = False) -> onnx.ModelProto:
    """Six convolutions of 48 channels at 32 px, with bias or with separate bias and norm."""
    graph, value, channels = Graph(), "x", 3
    for _ in range(6):
        weight, bias = 1.4 * normal(48, channels, 3, 3), 0.1 * RANDOM.standard_normal(48)
        if separate:
            value = graph.add("Conv", value, weight, pads=[1] * 4)
            value = graph.add("Add", value, bias.reshape(1, 48, 1, 1))
            value = graph.add("BatchNormalization", value, *(RANDOM.random(48) + 0.5 for _ in range(4)))
        else:
            value = graph.add("Conv", value, weight, bias, pads=[1] * 4)
        value, channels = activate(graph, value), 48
    return graph.model(graph.add("GlobalAveragePool", value), [3, 32, 32])


def relu(graph: Graph, x: str) -> str:
    return graph.add("Relu", x)


def gelu(graph: Graph, x: str) -> str:
    curve = graph.add("Add", graph.add("Erf", graph.add("Div", x, 2**0.5)), 1)
    return graph.add("Mul", graph.add("Mul", x, curve), 0.5)


def silu(graph: Graph, x: str) -> str:
    return graph.add("Mul", x, graph.add("Sigmoid", x))


def hard_swish(graph: Graph, x: str) -> str:
    gate = graph.add("Clip", graph.add("Add", x, 3), 0, 6)
    return graph.add("Div", graph.add("Mul", x, gate), 6)


def encoder(mean: bool) -> onnx.ModelProto:
    """Four layers of 384 x 384 with a residual sum and a norm each, for 32 tokens."""
    graph, value = Graph(), "x"
    for _ in range(4):
        product = graph.add("MatMul", value, normal(384, 384))
        value = norm(graph, graph.add("Add", product, value), mean)
    return graph.model(value, [32, 384])


def norm(graph: Graph, x: str, mean: bool) -> str:
    """A layer norm or an RMS norm with a square as Mul and a reciprocal root."""
    if mean:
        x = graph.add("Sub", x, graph.add("ReduceMean", x, axes=[-1]))
    variance = graph.add("ReduceMean", graph.add("Mul", x, x), axes=[-1])
    root = graph.add("Sqrt", graph.add("Add", variance, 1e-5))
    scaled = graph.add("Mul", x, graph.add("Reciprocal", root))
    scaled = graph.add("Mul", scaled, RANDOM.random(384) + 0.5)
    return graph.add("Add", scaled, RANDOM.random(384)) if mean else scaled


def mixer() -> onnx.ModelProto:
    """Three layers of a mixer: 196 x 196 over tokens, then 256 x 256 over channels."""
    graph, value = Graph(), "x"
    for _ in range(3):
        tokens = graph.add("MatMul", normal(196, 196), value)
        tokens = graph.add("Relu", graph.add("Add", tokens, RANDOM.standard_normal((196, 1))))
        value = graph.add("Relu", graph.add("MatMul", tokens, normal(256, 256)))
    return graph.model(value, [196, 256])


def einsums() -> onnx.ModelProto:
    """Three pairs of layers, 256 x 1024 and back, written as Einsum with a Relu after each."""
    graph, value = Graph(), "x"
    for _ in range(3):
        for rows, columns in ((256, 1024), (1024, 256)):
            product = graph.add("Einsum", value, normal(rows, columns), equation="bsd,dh->bsh")
            value = graph.add("Relu", graph.add("Add", product, RANDOM.standard_normal(columns)))
    return graph.model(value, [32, 256])


class Nothing:
    """A pass that changes nothing."""

    def __call__(self, model: object) -> None:
        pass


def no_fusions(model: onnx.ModelProto) -> frozenset[str]:
    return frozenset()


def every_silu(model: onnx.ModelProto) -> frozenset[str]:
    return frozenset(node.name for node in model.graph.node if node.op_type in {"Sigmoid", "Mul"})


def compare(name: str, model: onnx.ModelProto, without: object) -> None:
    """Measure float, int8 as it is, and int8 with a patch."""
    size = [axis.dim_value for axis in model.graph.input[0].type.tensor_type.shape.dim[1:]]
    x = RANDOM.standard_normal((SAMPLES, *size)).astype(np.float32)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.log_severity_level = 1, 3
    with tempfile.TemporaryDirectory() as folder:
        files = {key: Path(folder) / f"{key}.onnx" for key in ("float", "int8", "patched")}
        data = Path(folder) / "x.npz"
        onnx.save(model, files["float"])
        np.savez(data, x=x)
        quantize_file(files["float"], data, files["int8"])
        with without:
            quantize_file(files["float"], data, files["patched"])
        sessions = {key: onnxruntime.InferenceSession(str(path), settings) for key, path in files.items()}
    times = {key: [] for key in sessions}
    for _ in range(REPEATS):
        for key, session in sessions.items():
            start = time.perf_counter()
            session.run(None, {"x": x[:1]})
            times[key].append(1000 * (time.perf_counter() - start))
    outputs = {key: session.run(None, {"x": x})[0] for key, session in sessions.items()}
    for key, values in times.items():
        error = np.linalg.norm(outputs["float"] - outputs[key])
        sqnr = "" if key == "float" else f"{20 * np.log10(np.linalg.norm(outputs['float']) / error):.1f} dB"
        low, middle, high = np.percentile(values, [10, 25, 50])
        print(f"{name:24s} {key:8s} {middle:7.3f} ms ({low:.3f} to {high:.3f}) {sqnr}")


def main() -> None:
    """Run all comparisons; `patched` is the model without the rewrite, or with SiLU in float."""
    fusions = patch.object(qdq, "float_fusions", no_fusions)
    compare(
        "separate bias and norm",
        convolutions(relu, separate=True),
        patch.object(rewrites, "FoldAfterPass", Nothing),
    )
    compare("MatMul and Add as Gemm", layers(relu, [256], 256), patch.object(rewrites, "GemmPass", Nothing))
    compare("GELU", layers(gelu, [32, 256], 1024), fusions)
    compare("SiLU after MatMul", layers(silu, [32, 256], 1024), fusions)
    compare("SiLU after Conv", convolutions(silu), patch.object(qdq, "float_fusions", every_silu))
    left = patch.object(rewrites, "ConstantMatMulPass", Nothing)
    compare("MatMul(constant, x)", mixer(), left)
    compare("Einsum", einsums(), nullcontext())  # without the rewrite, nothing of it runs in int8
    decomposed = patch.object(rewrites, "DecomposedNormPass", Nothing)
    compare("LayerNormalization", encoder(mean=True), decomposed)
    compare("RMSNormalization", encoder(mean=False), decomposed)
    unfolded = patch.multiple(rewrites, DecomposedHardSwishPass=Nothing, FoldBeforePass=Nothing)
    compare("HardSwish", convolutions(hard_swish), unfolded)


if __name__ == "__main__":
    main()
