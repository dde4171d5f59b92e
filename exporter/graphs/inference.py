"""Run models on this host for their outputs, not for their latency.

Sums of int8 products are exact here on any CPU. Without VNNI they would saturate, although the target CPU
may not saturate. If the target CPU does, the int8 model itself prevents it, and `bench` judges the result.
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
from bench.inputs.session import FATAL_ONLY, RuntimeOptions, exact_session, open_session
from exporter.graphs.edits import add_outputs, with_outputs
from exporter.graphs.onnx_files import is_large, save_large
from exporter.graphs.rewrites.processing import score_tensor
from exporter.sources.splits import Split

MAX_BATCH = 64
# Limit on the inputs of one batch; activations take a multiple of it.
_BATCH_INPUT_BYTES = 8 * 2**20


def run_model(path: Path, split: Split) -> Array:
    """Run a model on a split and return its first output, [N, ...]."""
    return _run(open_session(path, RuntimeOptions(exact_sums=True)), None, split)


def run_scores(path: Path, split: Split) -> Array:
    """Run a model on a split and return its scores [N, classes], before postprocessing in the graph."""
    model = onnx.load(path, load_external_data=False)
    name = score_tensor(model)
    if name == model.graph.output[0].name:
        return run_model(path, split)
    model = onnx.load(path)
    add_outputs(model.graph, [name])
    return _run(open_exact(model), [name], split)


def open_exact(model: onnx.ModelProto, threads: int = 0) -> onnxruntime.InferenceSession:
    """A session in which no sum of int8 products saturates; 0 threads means one for each core."""
    return exact_session(lambda chosen: open_model(model, chosen), lambda: session_options(threads))


def session_options(threads: int) -> onnxruntime.SessionOptions:
    """Options of a session that logs only errors and applies all optimizations."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = FATAL_ONLY
    options.intra_op_num_threads = threads
    return options


def optimizing_options(destination: Path, signed: bool | None) -> onnxruntime.SessionOptions:
    """Options of a session that writes the graph after all optimizations.

    Args:
        destination: the file to write.
        signed: whether signed activations fuse into int8 kernels, as on the kind of CPU that the model is
            for. By default (None), ONNX Runtime decides it by the host's CPU (graph_transformer_utils.cc,
            QDQIsInt8Allowed).
    """
    options = session_options(threads=0)
    if signed is not None:
        options.add_session_config_entry("session.qdqisint8allowed", str(int(signed)))
    options.optimized_model_filepath = str(destination)
    return options


def session_with_outputs(
    model: onnx.ModelProto, tensors: Sequence[str], *, optimized: bool = False
) -> onnxruntime.InferenceSession:
    """A session on the model with more outputs, on all cores.

    By default, the graph runs without optimizations. With `optimized`, ONNX Runtime fuses operators and
    changes layouts but keeps the outputs; sums may then round differently. (EfficientNet-Lite0 at 224 px
    with 61 outputs, two threads: 5.4 ms per image instead of 9.9.)
    """
    options = session_options(os.cpu_count() or 1)
    # Spinning threads would occupy the cores that process the outputs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # The memory pattern is planned for each shape and needs memory in addition to the outputs (40 MB more).
    options.enable_mem_pattern = False
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return open_model(with_outputs(model, tensors), options)


def open_model(model: onnx.ModelProto, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
    """A session on a model in memory; a model too large for one message is first written to two files."""
    if not is_large(model):
        return onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    with tempfile.TemporaryDirectory(prefix="edgeproof-") as folder:
        path = Path(folder) / "model.onnx"
        save_large(model, path)
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _run(session: onnxruntime.InferenceSession, names: Sequence[str] | None, split: Split) -> Array:
    sample_bytes = sum(array.nbytes for array in split.inputs.values()) // max(split.count, 1)
    size = max(1, min(MAX_BATCH, _BATCH_INPUT_BYTES // max(sample_bytes, 1)))
    return np.concatenate(
        [
            session.run(names, {n: np.ascontiguousarray(a) for n, a in feeds.items()})[0]
            for feeds in split.batches(size)
        ]
    )
