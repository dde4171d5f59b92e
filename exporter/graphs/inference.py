"""Running models on this workstation, for numbers and not for times.

Sums of int8 products are exact here, whatever this CPU is: without VNNI they would saturate, which the CPU
that the model is for may not know. What saturates there is taken care of in the model; `bench` judges it.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from bench.core.arrays import Array
from bench.inputs.session import ERRORS_ONLY, RuntimeOptions, exact_session, open_session
from exporter.graphs.edits import add_outputs, with_outputs
from exporter.graphs.onnx_files import is_large, save_large
from exporter.graphs.rewrites.processing import score_tensor
from exporter.sources.splits import Split

BATCH = 64


def run_model(path: Path, split: Split) -> Array:
    """The first output of a model on a split, [N, ...]."""
    return _run(open_session(path, RuntimeOptions(exact_sums=True)), None, split)


def run_scores(path: Path, split: Split) -> Array:
    """The network's own output [N, classes] on a split, before any postprocessing inside the graph."""
    model = onnx.load(path, load_external_data=False)
    name = score_tensor(model)
    if name == model.graph.output[0].name:
        return run_model(path, split)
    model = onnx.load(path)
    add_outputs(model.graph, [name])
    return _run(open_exact(model), [name], split)


def open_exact(model: onnx.ModelProto, threads: int = 0) -> onnxruntime.InferenceSession:
    """A session in which no sum of int8 products saturates; 0 threads are as many as there are cores."""
    return exact_session(lambda chosen: open_model(model, chosen), lambda: session_options(threads))


def session_options(threads: int) -> onnxruntime.SessionOptions:
    """Options of a quiet session with all optimizations."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = ERRORS_ONLY
    options.intra_op_num_threads = threads
    return options


def session_with_outputs(
    model: onnx.ModelProto, tensors: Sequence[str], *, optimized: bool = False
) -> onnxruntime.InferenceSession:
    """The model with further outputs, on all cores.

    By default it runs as written, to the last bit. `optimized` keeps the outputs and lets ONNX Runtime
    lay out and fuse the rest; sums may then round otherwise. (EfficientNet-Lite0 at 224 px with 61 outputs,
    two threads: 5.4 ms an image instead of 9.9.)
    """
    options = session_options(os.cpu_count() or 1)
    # Threads that wait for work by turning round would take the core from what looks at the outputs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # A plan of all memory beforehand is made for each shape, beside what the outputs take (40 MB more).
    options.enable_mem_pattern = False
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return open_model(with_outputs(model, tensors), options)


def open_model(model: onnx.ModelProto, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
    """A session on a model in memory; one too large for a message goes by way of two files."""
    if not is_large(model):
        return onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    with tempfile.TemporaryDirectory(prefix="edgeproof-") as folder:
        path = Path(folder) / "model.onnx"
        save_large(model, path)
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _run(session: onnxruntime.InferenceSession, names: Sequence[str] | None, split: Split) -> Array:
    return np.concatenate(
        [
            session.run(names, {n: np.ascontiguousarray(a) for n, a in feeds.items()})[0]
            for feeds in split.batches(BATCH)
        ]
    )
