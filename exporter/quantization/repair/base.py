"""The arguments and the result of every repair."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx

from bench.core.arrays import Array
from bench.core.progress import Progress
from exporter.results import RepairFigures


@dataclass(frozen=True, kw_only=True)
class RepairContext:
    """The inputs of a repair, apart from the model.

    Attributes:
        inputs: the samples to fit on, input name -> array [N, ...].
        batch_size: samples per run.
        reference: the float model whose activations are correct. The repair's `model` differs from it in
            the weights and biases that earlier repairs changed for int8.
        qdq_model: converts a float model to its QDQ form with the reference's activation ranges.
        per_channel: whether each output channel of the weights has its own scale.
        progress: receives the progress.
    """

    inputs: Mapping[str, Array]
    batch_size: int
    reference: onnx.ModelProto
    qdq_model: Callable[[onnx.ModelProto], onnx.ModelProto]
    per_channel: bool
    progress: Progress

    def feeds(self, samples: int | None = None) -> Iterator[dict[str, Array]]:
        """Yield batches of all samples, or of about the first `samples`; only the last may be smaller."""
        count = self.count
        if samples is not None:
            count = min(count, max(1, samples // self.batch_size) * self.batch_size)
        for start in range(0, count, self.batch_size):
            stop = min(start + self.batch_size, count)
            yield {name: np.ascontiguousarray(array[start:stop]) for name, array in self.inputs.items()}

    @property
    def count(self) -> int:
        """The number of samples."""
        return len(next(iter(self.inputs.values())))

    def batches(self) -> int:
        """The number of batches of all samples."""
        return -(-self.count // self.batch_size)


# (model, context) -> (repaired copy of the model, figures of the change)
Repair = Callable[[onnx.ModelProto, RepairContext], tuple[onnx.ModelProto, RepairFigures]]
