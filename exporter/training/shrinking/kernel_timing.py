"""Measure the time of single ONNX Runtime kernels on this CPU.

A kernel is timed as a model of one node. Its inputs and outputs have the type and layout that the kernel
has inside a whole network: int8 convolutions read and write 8-bit pictures with channels last, as ONNX
Runtime's layout pass arranges them. The fixed cost of a session call is measured with an empty model and
subtracted, so the result is the time of the kernel alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from bench.core.arrays import Array
from bench.inputs.session import FATAL_ONLY
from exporter.graphs.targets import WEIGHT_LEVELS, Target
from exporter.options import Precision
from exporter.training.shrinking.layer_costs import Kernel

ROUNDS = 5
BURST_NS = 1_500_000
MIN_BURST, MAX_BURST = 3, 300
# Number of sessions that are open at the same time and take turns.
BATCH = 400
_DOMAIN = "com.microsoft"
_TYPES = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8, "tensor(int8)": np.int8}


@dataclass(frozen=True)
class Setting:
    """Precision, target CPU and number of threads of the timed kernels."""

    precision: Precision
    target: Target
    threads: int


def time_kernels(kernels: Sequence[Kernel], setting: Setting) -> list[float]:
    """Measure kernels and return the nanoseconds of one call of each, at least 1.

    The sessions take turns in short bursts. The fastest burst of each counts, because other work on the
    machine can only slow a burst down.
    """
    found: list[float] = []
    for start in range(0, len(kernels), BATCH):
        models = [_empty(), *(_model(kernel, setting) for kernel in kernels[start : start + BATCH])]
        sessions = [_open(model, setting.threads) for model in models]
        best = [math.inf] * len(sessions)
        for _ in range(ROUNDS):
            for index, (session, feeds) in enumerate(sessions):
                best[index] = min(best[index], _burst(session, feeds, best[index]))
        found += [max(ns - best[0], 1.0) for ns in best[1:]]
    return found


def _burst(session: onnxruntime.InferenceSession, feeds: dict[str, Array], typical_ns: float) -> float:
    session.run(None, feeds)
    count = 1 if math.isinf(typical_ns) else int(min(MAX_BURST, max(MIN_BURST, BURST_NS // typical_ns)))
    start = time.perf_counter_ns()
    for _ in range(count):
        session.run(None, feeds)
    return (time.perf_counter_ns() - start) / count


def _open(model: onnx.ModelProto, threads: int) -> tuple[onnxruntime.InferenceSession, dict[str, Array]]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = FATAL_ONLY
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    (given,) = session.get_inputs()
    value = np.random.default_rng(0).random(given.shape) * 100
    return session, {given.name: value.astype(_TYPES[given.type])}


def _empty() -> onnx.ModelProto:
    return _wrap(helper.make_node("Relu", ["x"], ["y"]), [1, 1], [1, 1], TensorProto.FLOAT, {})


def _model(kernel: Kernel, setting: Setting) -> onnx.ModelProto:
    if setting.precision == "fp32":
        return _float_model(kernel)
    return _int8_model(kernel, np.int8 if setting.target.signed_activations else np.uint8)


def _float_model(kernel: Kernel) -> onnx.ModelProto:
    weight = np.random.default_rng(0).standard_normal(_weight_shape(kernel)).astype(np.float32)
    if kernel.window:
        node = helper.make_node("Conv", ["x", "w"], ["y"])
        node.attribute.extend(_attributes(kernel))
        given, made = [1, kernel.inputs, *kernel.size], [1, kernel.outputs, *kernel.out_size]
    else:
        node = helper.make_node("MatMul", ["x", "w"], ["y"])
        given, made = [*kernel.size, kernel.inputs], [*kernel.size, kernel.outputs]
    return _wrap(node, given, made, TensorProto.FLOAT, {"w": weight})


def _int8_model(kernel: Kernel, activation: type[np.generic]) -> onnx.ModelProto:
    """An int8 model of one kernel.

    The operator is from ONNX Runtime's domain. ONNX Runtime's layout pass and fusions put the same operator
    into a whole network.
    """
    weights = {
        "s": np.array(0.02, np.float32),
        "z": np.array(0, activation),
        "w": np.random.default_rng(0).integers(
            -WEIGHT_LEVELS, WEIGHT_LEVELS + 1, _weight_shape(kernel), dtype=np.int8
        ),
        "ws": np.full(kernel.outputs, 0.01, np.float32),
        "wz": np.zeros(kernel.outputs, np.int8),
        "b": np.zeros(kernel.outputs, np.int32),
    }
    if kernel.window:
        node = helper.make_node(
            "QLinearConv",
            ["x", "s", "z", "w", "ws", "wz", "s", "z", "b"],
            ["y"],
            domain=_DOMAIN,
            channels_last=1,
        )
        node.attribute.extend(_attributes(kernel))
        given, made = [1, *kernel.size, kernel.inputs], [1, *kernel.out_size, kernel.outputs]
    else:
        node = helper.make_node(
            "QGemm", ["x", "s", "z", "w", "ws", "wz", "b", "s", "z"], ["y"], domain=_DOMAIN, alpha=1.0
        )
        given, made = [*kernel.size, kernel.inputs], [*kernel.size, kernel.outputs]
    element = TensorProto.INT8 if activation is np.int8 else TensorProto.UINT8
    return _wrap(node, given, made, element, weights)


def _weight_shape(kernel: Kernel) -> tuple[int, ...]:
    if kernel.window:
        return kernel.outputs, kernel.inputs // kernel.group_count, *kernel.window
    return kernel.inputs, kernel.outputs


def _attributes(kernel: Kernel) -> list[onnx.AttributeProto]:
    """The attributes of a convolution.

    The padding is computed from the observed output size; if it is odd, the end gets the larger part.
    """
    totals = [
        max(0, (made - 1) * stride + dilation * (window - 1) + 1 - given)
        for given, made, window, stride, dilation in zip(
            kernel.size, kernel.out_size, kernel.window, kernel.stride, kernel.dilation, strict=True
        )
    ]
    found: dict[str, int | list[int]] = {
        "kernel_shape": list(kernel.window),
        "strides": list(kernel.stride),
        "dilations": list(kernel.dilation),
        "pads": [*(total // 2 for total in totals), *(total - total // 2 for total in totals)],
        "group": kernel.group_count,
    }
    return [helper.make_attribute(name, value) for name, value in found.items()]


def _wrap(
    node: onnx.NodeProto,
    given: Sequence[int],
    made: Sequence[int],
    element: int,
    weights: dict[str, Array],
) -> onnx.ModelProto:
    graph = helper.make_graph(
        [node],
        "kernel",
        [helper.make_tensor_value_info("x", element, list(given))],
        [helper.make_tensor_value_info("y", element, list(made))],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(_DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)
