"""Running models on this workstation, for numbers and not for times."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from bench.arrays import Array
from bench.session import ERRORS_ONLY, open_session
from exporter.data import Split

BATCH = 64


def run_model(path: Path, split: Split) -> Array:
    """The first output of a model on a split, [N, ...]."""
    session = open_session(path)
    return np.concatenate(
        [
            session.run(None, {n: np.ascontiguousarray(a) for n, a in feeds.items()})[0]
            for feeds in split.batches(BATCH)
        ]
    )


def session_with_outputs(model: onnx.ModelProto, tensors: Sequence[str]) -> onnxruntime.InferenceSession:
    """The model with further outputs, on all cores and without optimizations that would fuse them away."""
    augmented = onnx.ModelProto()
    augmented.CopyFrom(model)
    inputs = {value.name for value in augmented.graph.input}
    outputs = {value.name for value in augmented.graph.output}
    for name in tensors:
        if name not in inputs | outputs:
            augmented.graph.output.append(onnx.ValueInfoProto(name=name))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = ERRORS_ONLY
    options.intra_op_num_threads = os.cpu_count() or 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(
        augmented.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
