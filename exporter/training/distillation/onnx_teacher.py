"""Teachers that ONNX Runtime runs: an .onnx file, or a network in PyTorch by way of its graph."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from bench.core.errors import DataError, EdgeproofError
from bench.inputs.session import check_feeds, model_error, signature_of
from bench.metrics.parity import sqnr_db
from exporter.errors import StageError
from exporter.graphs.inference import open_model, session_options
from exporter.graphs.onnx_files import read_model
from exporter.graphs.rewrites.processing import network_alone
from exporter.networks.network import predict
from exporter.onnx_export.export import SAME_SQNR_DB, export
from exporter.recipes import ExportConfig
from exporter.sources.splits import Split

_CHECK_SAMPLES = 32


class OnnxTeacher(nn.Module):
    """Wraps a model so that `exporter.networks.network.call` can run it; its inputs are those of the data.

    Args:
        path: of the model. What an export put before and after its network is left out; of several outputs
            the first is taken.
        sample: of the data, for names, types and shapes.
        place: what to name in errors.

    Raises:
        ModelError: ONNX Runtime cannot load it.
        StageError: it takes other inputs than the data have.
    """

    def __init__(self, path: Path, sample: Split, place: str) -> None:
        super().__init__()
        model = network_alone(read_model(path))
        try:
            self._session = open_model(model, session_options(torch.get_num_threads()))
        except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
            raise model_error(path, error) from error
        self._signature = signature_of(self._session)
        wanted = [spec.name for spec in self._signature.inputs]
        names = list(sample.inputs)
        # Names are free where there is no doubt which input is meant.
        self._names = names if set(names) == set(wanted) or len(names) != len(wanted) else wanted
        feeds = dict(zip(self._names, sample.inputs.values(), strict=True))
        try:
            check_feeds(place, self._signature, feeds)
        except DataError as error:
            raise StageError(
                place,
                f"the teacher does not take the student's data: {error.cause} where {error.fix}",
                "choose a teacher of the same input size",
            ) from error
        first = self._signature.inputs[0].shape[0]
        self._batch = first if isinstance(first, int) else None

    def forward(self, *inputs: Tensor) -> Tensor:
        """The first output for inputs in the order of the data, on the device of the first."""
        arrays = [np.ascontiguousarray(tensor.detach().cpu().numpy()) for tensor in inputs]
        count = len(arrays[0])
        size = self._batch or count
        given = [
            self._session.run(
                None, {n: a[start : start + size] for n, a in zip(self._names, arrays, strict=True)}
            )[0]
            for start in range(0, count, size)
        ]
        return torch.from_numpy(np.concatenate(given)).to(inputs[0].device)


def as_graph(teacher: nn.Module, split: Split, config: ExportConfig, place: str) -> nn.Module:
    """The same teacher on ONNX Runtime, for a training on the CPU; itself, if it cannot be exported.

    A teacher is only ever asked, and of a training by distillation that is a third to a half: with norms
    folded and operators fused the answer comes sooner (EfficientNet-Lite0 at 128 px, 32 pictures, two
    threads of x86 with AVX2: in 0.26 of the time, by tests/perf/teacher.py).

    Args:
        teacher: in evaluation mode.
        split: of the data, at least two samples; both forms must say the same to the first few.
        config: how the recipe exports; the teacher takes what networks take, whatever a device feeds.
        place: what to name in errors.
    """
    sample = split.first(_CHECK_SAMPLES)
    with tempfile.TemporaryDirectory(prefix="edgeproof-") as folder:
        path = Path(folder) / "teacher.onnx"
        try:
            export(teacher, sample, path, config.network_alone(), {})
            graph = OnnxTeacher(path, sample, place)
            same = sqnr_db(predict(teacher, sample), predict(graph, sample)) >= SAME_SQNR_DB
        except EdgeproofError:
            return teacher
    return graph if same else teacher
