"""A teacher that is an .onnx file: run by ONNX Runtime, learnt from as from any other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from bench.errors import DataError
from bench.session import check_feeds, open_session, signature_of
from exporter.data import Split
from exporter.errors import StageError


class OnnxTeacher(nn.Module):
    """Wraps a model so that `exporter.network.call` can run it; its inputs are those of the data.

    Args:
        path: of the model; its first output is taken.
        sample: of the data, for names, types and shapes.
        place: what to name in errors.

    Raises:
        ModelError: ONNX Runtime cannot load it.
        StageError: it takes other inputs than the data have.
    """

    def __init__(self, path: Path, sample: Split, place: str) -> None:
        super().__init__()
        self._session = open_session(path)
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
