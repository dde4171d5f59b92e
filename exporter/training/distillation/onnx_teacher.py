"""Teachers that run in ONNX Runtime: an .onnx file, or an exported PyTorch network."""

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
    """An ONNX model as a module that `exporter.networks.network.call` can run on the data.

    Args:
        path: path of the model. Preprocessing and postprocessing that an export added around the network
            are removed. If the model has several outputs, the first is used.
        sample: a sample of the data, for names, types and shapes of the inputs.
        place: the place that errors name.

    Raises:
        ModelError: ONNX Runtime cannot load the model.
        StageError: the inputs of the model differ from the inputs in the data.
    """

    def __init__(self, path: Path, sample: Split, place: str) -> None:
        super().__init__()
        model = network_alone(read_model(path))
        try:
            self._session = open_model(model, session_options(torch.get_num_threads()))
        except Exception as error:  # ONNX Runtime's exceptions have no common base class
            raise model_error(path, error) from error
        self._signature = signature_of(self._session)
        wanted = [spec.name for spec in self._signature.inputs]
        names = list(sample.inputs)
        # With the same number of inputs, the names may differ: the order then decides.
        self._names = names if set(names) == set(wanted) or len(names) != len(wanted) else wanted
        feeds = dict(zip(self._names, sample.inputs.values(), strict=True))
        try:
            check_feeds(place, self._signature, feeds)
        except DataError as error:
            raise StageError(
                place,
                f"the teacher does not accept the student's data: {error.cause} ({error.fix})",
                "choose a teacher with the same inputs",
            ) from error
        first = self._signature.inputs[0].shape[0]
        self._batch = first if isinstance(first, int) else None

    def forward(self, *inputs: Tensor) -> Tensor:
        """The first output, for inputs in the order of the data, on the device of the first input."""
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
    """The same teacher in ONNX Runtime, for training on the CPU.

    Returns the teacher itself if it cannot be exported, or if the exported model computes other outputs.

    The teacher only needs a forward pass, which takes a third to a half of the time of a distillation. With
    folded norms and fused operators it is faster (EfficientNet-Lite0 at 128 px, 32 pictures, two threads of
    x86 with AVX2: 0.26 of the time, measured by tests/perf/teacher.py).

    Args:
        teacher: the network in evaluation mode.
        split: a split of the data with at least two samples; the first few check that both forms agree.
        config: export settings of the recipe; preprocessing and postprocessing are not exported.
        place: the place that errors name.
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
