"""Many int8 models of one network: ranges are collected once, and the graph is made again each time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import onnx

from bench.core.arrays import Array
from bench.core.progress import Progress
from exporter.graphs.onnx_files import infer_shapes
from exporter.graphs.ranges import Range
from exporter.graphs.targets import Target
from exporter.inspection.saturation import NO_REDUCTION, Reduction, without_saturation
from exporter.quantization.calibration import collect_ranges
from exporter.quantization.int8 import calibration_batch_size
from exporter.quantization.ort_quantizer import float_tensors
from exporter.quantization.qdq import QdqPlan, make_qdq, plan_qdq
from exporter.recipes.options import CalibrationMethod
from exporter.sources.splits import ArraySamples


@dataclass
class QdqModels:
    """Makes int8 models as the build would.

    Attributes:
        inputs: calibration samples.
        target: the CPU kind.
        method: how ranges are chosen.
        exclude: nodes that stay in float in every model.
        fixed_batch: the batch size that the model insists on, or None.
        progress: told of every batch.
        reduction: the channels of the calibrated model that get fewer levels so that they do not
            saturate. Repairs round to these levels: all models have them, and the build starts from them.
    """

    inputs: Mapping[str, Array]
    target: Target
    method: CalibrationMethod
    exclude: tuple[str, ...]
    fixed_batch: int | None
    progress: Progress
    reduction: Reduction = NO_REDUCTION
    _ranges: dict[str, Range] = field(default_factory=dict)

    def calibrate(self, reference: onnx.ModelProto) -> None:
        """Collect the ranges of every tensor of a model; all models made from now on have them.

        Every tensor, because which ones are rounded changes with what is excluded.
        """
        shaped = infer_shapes(reference)
        samples = ArraySamples(self.inputs)
        size = self.batch_size(reference)
        self._ranges = collect_ranges(
            shaped,
            float_tensors(shaped),
            samples.batches(size),
            batches=-(-samples.count // size),
            method=self.method,
            progress=self.progress,
        )
        if self.target.saturates:
            plan = self.plan(reference)
            _, self.reduction = without_saturation(
                lambda overrides: make_qdq(plan, self._ranges, overrides), lambda: samples.batches(size)
            )

    def plan(self, model: onnx.ModelProto, exclude: tuple[str, ...] = ()) -> QdqPlan:
        """What of a model would run in int8."""
        return plan_qdq(model, self.target, (*self.exclude, *exclude))

    def make(self, model: onnx.ModelProto, exclude: tuple[str, ...] = ()) -> onnx.ModelProto:
        """The QDQ form of a model whose activations are those of the calibrated one."""
        return make_qdq(self.plan(model, exclude), self._ranges, self.reduction.overrides())

    def batch_size(self, model: onnx.ModelProto) -> int:
        """Samples per run when all tensors are looked at."""
        shaped = infer_shapes(model)
        return self.fixed_batch or calibration_batch_size(shaped, float_tensors(shaped))
