"""Compare the time of operators in int8 and in float on this CPU; run by hand, one minute.

    python tests/perf/placement.py [--rounds 40]

Each line is a small network, quantized by edgeproof for this CPU. The float and the int8 model take turns
on one thread. The figures are CPU time: the lower quartile of each model, and the median of int8 / float
with its 10th and 90th percentile. Convolutions that edgeproof leaves in float are quantized here all the
same, because the figures are the reason to leave them in float (`exporter/graphs/slow_kernels.py`).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import numpy as np
import onnx
from onnx import numpy_helper

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from bench.core.progress import SILENT  # noqa: E402
from exporter.graphs.inference import open_model, session_options  # noqa: E402
from exporter.graphs.targets import find_target  # noqa: E402
from exporter.quantization import qdq  # noqa: E402
from exporter.quantization.int8 import Int8Settings, quantize_model  # noqa: E402
from exporter.sources.splits import ArraySamples  # noqa: E402

SAMPLES = 4


def main() -> None:
    """Build, quantize and time all networks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    rounds = parser.parse_args().rounds
    for label, model, sample in networks():
        x = np.random.default_rng(0).standard_normal((SAMPLES, *sample)).astype(np.float32)
        fixed = model.graph.input[0].type.tensor_type.shape.dim[0].dim_value or None
        settings = Int8Settings(find_target("auto"), fixed_batch=fixed)
        with tempfile.TemporaryDirectory() as folder, patch.object(qdq, "slow_nodes", lambda _: ()):
            path = Path(folder) / "int8.onnx"
            quantize_model(model, path, ArraySamples({"x": x}), settings, progress=SILENT)
            times = interleaved([model, onnx.load(path)], x[:1], rounds)
        ratios = np.quantile(times[1] / times[0], [0.1, 0.5, 0.9])
        before, after = np.quantile(times, 0.25, axis=1) * 1e3
        low, median, high = ratios
        print(f"{label:44} {before:7.3f} -> {after:7.3f} ms, {median:.2f} ({low:.2f} to {high:.2f})")


def networks() -> Iterator[tuple[str, onnx.ModelProto, tuple[int, ...]]]:
    """Yield the label, the model and the shape of a sample of each network."""
    for channels in (1, 2, 4, 8, 16, 32):
        weights = {"w": (64, channels, 3, 3)}
        body = f"y = Conv<group = {64 // channels}, pads = [1, 1, 1, 1]>(x, w)"
        label = f"Conv 3 x 3, {channels} channels in each group"
        yield label, network(body, "N, 64, 28, 28", weights), (64, 28, 28)
    body = "y = Conv<group = 64, pads = [1, 1, 1, 1]>(x, w)"
    weights = {"w": (128, 1, 3, 3)}
    yield "Conv, depthwise, two results", network(body, "N, 64, 28, 28", weights), (64, 28, 28)
    for channels in (3, 8, 16, 32):
        weights = {"w": (32, channels, 3, 3, 3)}
        model = network("y = Conv<pads = [1, 1, 1, 1, 1, 1]>(x, w)", f"N, {channels}, 8, 16, 16", weights)
        yield f"Conv3d, {channels} channels", model, (channels, 8, 16, 16)
    model = network("u = Unsqueeze(x, one)  y = MatMul(u, w)", "N, 64, 128", {"w": (4, 128, 128)})
    yield "MatMul, 4 stacked matrices", model, (64, 128)
    for batch in ("1", "N"):
        body = "m = MatMul(x, w)  a = Add(m, b)  g = Gelu(a)  n = MatMul(g, v)  y = Add(n, c)"
        weights = {"w": (384, 1536), "b": (1536,), "v": (1536, 384), "c": (384,)}
        yield (
            f"MatMul, bias, Gelu, MatMul, batch {batch}",
            network(body, f"{batch}, 32, 384", weights),
            (32, 384),
        )
    for activation in ("Relu(h)", "LeakyRelu(h)", "Clip(h, low, high)"):
        body = f"h = Gemm(x, w, b)  a = {activation}  n = LayerNormalization(a, b)  y = Gemm(n, w, b)"
        model = network(body, "N, 256", {"w": (256, 256), "b": (256,)})
        yield f"Gemm, {activation}, LayerNormalization, Gemm", model, (256,)


def network(body: str, shape: str, weights: dict[str, tuple[int, ...]]) -> onnx.ModelProto:
    """Build a graph from `x` to `y` with random weights."""
    model = onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["" : 20]> g (float[{shape}] x) => (float y)'
        f" <int64[1] one = {{1}}, float low = {{0}}, float high = {{6}}> {{ {body} }}"
    )
    model.graph.output[0].type.tensor_type.ClearField("shape")
    generator = np.random.default_rng(0)
    for name, sizes in weights.items():
        value = generator.standard_normal(sizes) / np.sqrt(np.prod(sizes[1:]) or 1)
        model.graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), name))
    return model


def interleaved(models: list[onnx.ModelProto], x: np.ndarray, rounds: int) -> np.ndarray:
    """Measure the CPU time of each model in each round, in seconds, [models, rounds]."""
    sessions = [open_model(model, session_options(1)) for model in models]
    times = np.zeros((len(sessions), rounds))
    for number in range(-3, rounds):  # the first rounds warm up
        for index, session in enumerate(sessions):
            start = time.process_time()
            session.run(None, {"x": x})
            if number >= 0:
                times[index, number] = time.process_time() - start
    return times


if __name__ == "__main__":
    main()
