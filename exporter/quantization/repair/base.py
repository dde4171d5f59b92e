"""What every repair is given, and what it gives back."""

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
    """What a repair may ask for beside the model.

    Attributes:
        inputs: the samples to fit on, input name -> array [N, ...].
        batch_size: samples per run.
        reference: the float model whose activations are right. `model` differs from it by what earlier
            repairs did to weights and biases for the sake of int8.
        qdq_model: a float model -> its QDQ form, with the reference's activation ranges.
        per_channel: whether the weights of each output channel have a scale of their own.
        progress: told how far it is.
    """

    inputs: Mapping[str, Array]
    batch_size: int
    reference: onnx.ModelProto
    qdq_model: Callable[[onnx.ModelProto], onnx.ModelProto]
    per_channel: bool
    progress: Progress

    def feeds(self, samples: int | None = None) -> Iterator[dict[str, Array]]:
        """All samples, or about the first `samples`, in batches that are full but for the last of all."""
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
        """How many batches all samples make."""
        return -(-self.count // self.batch_size)


# (model, context) -> (repaired copy of the model, what changed)
Repair = Callable[[onnx.ModelProto, RepairContext], tuple[onnx.ModelProto, RepairFigures]]
