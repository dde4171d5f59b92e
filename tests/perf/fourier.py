"""Measure STFT against the Conv that replaces it; run by hand, 1 minute.

    python tests/perf/fourier.py

Each line has the frame, the step, the 10th, 25th and 50th percentile of the CPU time of both models in
milliseconds, the ratio of the 25th percentiles, their relative difference, and the size of the weights. The
signal has 16,000 samples. The models take turns and use one thread.
"""

from __future__ import annotations

import time

import numpy as np
import onnx_ir as ir
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from exporter.graphs.rewrites import fourier

RANDOM = np.random.default_rng(0)
LENGTH, REPEATS = 16_000, 20
FORMS = [
    (64, 32, 1),
    (256, 128, 1),
    (400, 160, 1),
    (400, 160, 0),
    (512, 160, 1),
    (512, 160, 0),
    (1024, 256, 1),
    (1200, 300, 1),
    (2048, 512, 1),
]


def transform(frame: int, step: int, onesided: int) -> ir.Model:
    """A model that is one STFT with a window."""
    constants = {"step": np.array(step), "window": np.hanning(frame).astype("f"), "frame": np.array(frame)}
    graph = helper.make_graph(
        [helper.make_node("STFT", ["x", *constants], ["y"], onesided=onesided)],
        "stft",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", LENGTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(content, name) for name, content in constants.items()],
    )
    return ir.from_proto(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    )


def session(model: ir.Model) -> onnxruntime.InferenceSession:
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.log_severity_level = 1, 3
    return onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), settings)


def main() -> None:
    """Measure all forms, also those that the rewrite leaves alone."""
    fourier._LARGEST_BASIS = fourier._LARGEST_SLOW_BASIS = 2**30  # private: these limits are measured here
    for frame, step, onesided in FORMS:
        model = transform(frame, step, onesided)
        sessions = [session(model)]
        fourier.FourierPass()(model)
        sessions.append(session(model))
        x = RANDOM.standard_normal((1, LENGTH)).astype(np.float32)
        times: list[list[float]] = [[], []]
        for _ in range(REPEATS):
            for place, each in enumerate(sessions):
                start = time.process_time()
                each.run(None, {"x": x})
                times[place].append(1000 * (time.process_time() - start))
        first, second = (each.run(None, {"x": x})[0] for each in sessions)
        spreads = [np.percentile(values, [10, 25, 50]) for values in times]
        size = 4 * max(value.const_value.size for value in model.graph.initializers.values()) / 1e6
        shown = " | ".join(" ".join(f"{value:6.2f}" for value in spread) for spread in spreads)
        difference = np.linalg.norm(first - second) / np.linalg.norm(first)
        sided = "one side" if onesided else "both sides"
        print(
            f"{frame:5d} {step:4d} {sided:10s} {shown} ms, ratio {spreads[1][1] / spreads[0][1]:.2f}, "
            f"difference {difference:.0e}, {size:.2f} MB",
            flush=True,
        )


if __name__ == "__main__":
    main()
