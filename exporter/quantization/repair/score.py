"""Score how close an int8 model is to its float reference on held-out samples."""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np
import onnx
import onnxruntime

from bench.core.arrays import Array
from bench.metrics.parity import EXACT_SQNR_DB, parity
from exporter.graphs.edits import with_outputs
from exporter.graphs.inference import open_exact, open_model, session_options
from exporter.graphs.rewrites.processing import score_tensor
from exporter.inspection.padding import real_positions, without_padding
from exporter.results import Score


def noise(sqnr_db: float) -> float:
    """Noise energy as a fraction of the signal energy."""
    return 0.0 if sqnr_db >= EXACT_SQNR_DB else float(10 ** (-sqnr_db / 10))


class Judge:
    """Scores int8 models against one reference.

    Args:
        reference: the float model before any repair.
        inputs: held-out samples, input name -> array [N, ...].
        labels: class indices of the samples [N], or None.
        batch_size: samples per run.
    """

    def __init__(
        self, reference: onnx.ModelProto, inputs: Mapping[str, Array], labels: Array | None, batch_size: int
    ) -> None:
        self.inputs, self.batch_size = inputs, batch_size
        self._real = real_positions(inputs)
        self.wanted = self.outputs(reference)
        self.labels = labels if self.wanted.ndim == 2 else None

    def outputs(self, model: onnx.ModelProto) -> Array:
        """The network's first output on the held-out samples, 0 at positions of padding."""
        found = outputs_of(model, self.inputs, self.batch_size)
        return found if found.ndim == 2 else without_padding(found, self._real)

    def score(self, model: onnx.ModelProto) -> Score:
        """Run a model with all of ONNX Runtime's optimizations, as on the device, and score its outputs."""
        got = self.outputs(model)
        if not np.isfinite(got).all():
            return Score(sqnr_db=-EXACT_SQNR_DB, agreement=0.0, drop=1.0)
        found = parity(self.wanted, got)
        drop = 1 - found.agreement
        if self.labels is not None:
            before = (self.wanted.argmax(axis=1) == self.labels).mean()
            after = (got.argmax(axis=1) == self.labels).mean()
            drop = float(before - after)
        return Score(sqnr_db=found.sqnr_db, agreement=found.agreement, drop=drop)


def outputs_of(model: onnx.ModelProto, inputs: Mapping[str, Array], batch_size: int) -> Array:
    """The network's first output on samples, [N, ...], before any postprocessing inside the graph.

    The result does not include saturation, even if this host is an x86 CPU without VNNI. Other targets do
    not saturate, and for targets that do, the build prevents saturation after the repairs.
    """
    name = score_tensor(model)
    if name not in {value.name for value in model.graph.output}:
        model = with_outputs(model, [name])
    session = open_exact(model, os.cpu_count() or 1)
    count = len(next(iter(inputs.values())))
    return np.concatenate(
        [
            session.run(
                [name], {n: np.ascontiguousarray(a[start : start + batch_size]) for n, a in inputs.items()}
            )[0]
            for start in range(0, count, batch_size)
        ]
    )


def fast_session(model: onnx.ModelProto, threads: int) -> onnxruntime.InferenceSession:
    """Open a session with all optimizations, as on the device."""
    return open_model(model, session_options(threads))
