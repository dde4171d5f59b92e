"""Time of ConvTranspose in float, and as an int8 convolution with DepthToSpace, interleaved.

    python -m tests.perf.transposed_convolution

Each network is a convolution of 1 x 1, a ConvTranspose with Relu, and a convolution of 1 x 1. It is
measured in float, in int8 with the ConvTranspose in float, and in int8 throughout. The times are CPU time
of one thread: the 25th percentile of 15 rounds, and the ratio's 25th and 75th percentiles over the rounds.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from unittest import mock

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from bench.core.progress import SILENT
from exporter.graphs.inference import open_model, session_options
from exporter.graphs.rewrites import transposed_convolution
from exporter.graphs.targets import find_target
from exporter.quantization.int8 import Int8Settings, quantize_model
from exporter.sources.splits import ArraySamples

ROUNDS, SECONDS = 15, 0.03
# Input channels, output channels, kernel, stride, padding, output padding, pixels.
FORMS = (
    (384, 192, 2, 2, 0, 0, 28),
    (256, 128, 4, 2, 1, 0, 14),
    (128, 64, 4, 2, 1, 0, 28),
    (128, 64, 3, 2, 1, 1, 28),
    (128, 64, 2, 2, 0, 0, 56),
    (128, 64, 4, 4, 0, 0, 28),
    (64, 32, 4, 2, 1, 0, 28),
    (64, 32, 3, 2, 1, 1, 56),
    (64, 32, 2, 2, 0, 0, 56),
    (32, 16, 4, 2, 1, 0, 56),
    (32, 16, 3, 2, 1, 1, 56),
    (32, 16, 2, 2, 0, 0, 56),
    (16, 8, 4, 2, 1, 0, 56),
    (64, 3, 4, 2, 1, 0, 56),
    (32, 1, 2, 2, 0, 0, 56),
    (64, 64, 3, 1, 1, 0, 28),
    (32, 32, 3, 1, 1, 0, 28),
    (256, 128, 16, 8, 4, 0, 0),
    (64, 32, 4, 2, 1, 0, 0),
)


def network(form):
    """The network of one form; with 0 pixels, along one axis of 256 values."""
    inputs, outputs, kernel, stride, padding, more, pixels = form
    generator = np.random.default_rng(0)
    sizes = [pixels, pixels] if pixels else [256]
    rank = len(sizes)

    def constant(name, *shape):
        scale = (inputs * kernel**rank / stride**rank) ** -0.5
        return numpy_helper.from_array((scale * generator.normal(size=shape)).astype(np.float32), name)

    nodes = [
        helper.make_node("Conv", ["x", "first"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["b"], name="relu"),
        helper.make_node(
            "ConvTranspose",
            ["b", "w", "bias"],
            ["c"],
            name="up",
            strides=[stride] * rank,
            pads=[padding] * 2 * rank,
            output_padding=[more] * rank,
        ),
        helper.make_node("Relu", ["c"], ["d"], name="relu2"),
        helper.make_node("Conv", ["d", "last"], ["y"], name="last"),
    ]
    constants = [
        constant("first", inputs, inputs, *[1] * rank),
        constant("w", inputs, outputs, *[kernel] * rank),
        constant("bias", outputs),
        constant("last", outputs, outputs, *[1] * rank),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", inputs, *sizes])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "up", [x], [y], constants)
    samples = generator.normal(size=(4, inputs, *sizes)).astype(np.float32)
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8), samples


def times(models, feeds):
    """CPU time of one inference in milliseconds, model -> one time each round."""
    sessions = {name: open_model(model, session_options(threads=1)) for name, model in models.items()}
    found = {name: [] for name in models}
    for _ in range(ROUNDS):
        for name, session in sessions.items():
            start, runs = time.process_time(), 0
            while runs < 2 or time.process_time() - start < SECONDS:
                session.run(None, feeds)
                runs += 1
            found[name].append((time.process_time() - start) / runs * 1e3)
    return {name: np.array(values) for name, values in found.items()}


def main():
    """Print one line for each form."""
    settings = Int8Settings(find_target("auto"))
    for form in FORMS:
        model, samples = network(form)
        models = {"float": model}
        with tempfile.TemporaryDirectory() as folder:
            for name, pays in (("float up", False), ("int8 up", True)):
                path = Path(folder) / "int8.onnx"
                with mock.patch.object(transposed_convolution, "is_faster", lambda form, pays=pays: pays):
                    quantize_model(model, path, ArraySamples({"x": samples}), settings, progress=SILENT)
                models[name] = onnx.load(path)
        measured = times(models, {"x": samples[:1]})
        line = ", ".join(f"{name} {np.percentile(values, 25):.2f}" for name, values in measured.items())
        for other in ("float", "float up"):
            low, high = np.percentile(measured["int8 up"] / measured[other], [25, 75])
            line += f", int8 up / {other} {low:.2f} to {high:.2f}"
        print(f"{form}: {line}", flush=True)


if __name__ == "__main__":
    main()
