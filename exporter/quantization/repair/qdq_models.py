"""Build many int8 models of one network: collect the ranges once, and build the graph each time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import onnx

from bench.core.arrays import Array
from bench.core.progress import Progress
from exporter.graphs.observed import samples_per_run
from exporter.graphs.onnx_files import infer_shapes
from exporter.graphs.ranges import Range
from exporter.inspection.saturation import NO_REDUCTION, Reduction, without_saturation
from exporter.quantization.calibration import activation_ranges
from exporter.quantization.fused import plan_what_fuses
from exporter.quantization.int8 import Int8Settings
from exporter.quantization.ort_quantizer import float_tensors
from exporter.quantization.qdq import QdqPlan, make_qdq, plan_qdq
from exporter.sources.splits import ArraySamples


@dataclass(frozen=True, kw_only=True)
class QdqModels:
    """Builds int8 models like the final build does, with the activation ranges of one float model.

    Attributes:
        reference: the calibrated float model.
        inputs: calibration samples, input name -> array [N, ...].
        settings: how to quantize. Products that ONNX Runtime would not run in int8 are excluded.
        ranges: the range of every tensor of `reference`, because the excluded nodes determine which
            tensors are rounded.
        reduction: the channels of `reference` that get fewer levels to prevent saturation. Repairs round to
            these levels, so all models use them, and the final build starts from them.
    """

    reference: onnx.ModelProto
    inputs: Mapping[str, Array]
    settings: Int8Settings
    ranges: Mapping[str, Range]
    reduction: Reduction

    def plan(self, model: onnx.ModelProto, exclude: tuple[str, ...] = ()) -> QdqPlan:
        """Plan which nodes of a model run in int8."""
        return plan_qdq(model, self.settings.target, (*self.settings.exclude, *exclude))

    def make(self, model: onnx.ModelProto, exclude: tuple[str, ...] = ()) -> onnx.ModelProto:
        """Build the QDQ form of a model whose activations equal those of `reference`."""
        return make_qdq(self.plan(model, exclude), self.ranges, self.reduction.overrides())

    def calibrated_on(self, reference: onnx.ModelProto, progress: Progress) -> QdqModels:
        """A copy with the ranges of another float model."""
        return calibrated(reference, self.inputs, self.settings, progress)

    def batch_size(self, model: onnx.ModelProto) -> int:
        """Samples per run when all tensors are observed."""
        shaped = infer_shapes(model)
        samples = ArraySamples(self.inputs)
        return self.settings.fixed_batch or samples_per_run(shaped, float_tensors(shaped), samples)


def calibrated(
    reference: onnx.ModelProto, inputs: Mapping[str, Array], settings: Int8Settings, progress: Progress
) -> QdqModels:
    """Collect the ranges of every tensor of a float model.

    Args:
        reference: the float model; every node has a name.
        inputs: calibration samples, input name -> array [N, ...].
        settings: how to quantize.
        progress: advances with every batch.

    Raises:
        DataError: the samples cannot be used.
        ExportError: an excluded node does not exist, or ONNX Runtime rejects the model.
    """
    shaped, samples = infer_shapes(reference), ArraySamples(inputs)
    tensors = float_tensors(shaped)
    size = settings.fixed_batch or samples_per_run(shaped, tensors, samples)
    ranges = activation_ranges(
        shaped, tensors, samples, batch_size=size, method=settings.method, progress=progress
    )
    fusing = plan_what_fuses(
        reference,
        settings.target,
        settings.exclude,
        ranges,
        _all_are_known,
        all_may_be_excluded=settings.all_may_be_excluded,
    )
    reduction = NO_REDUCTION
    if settings.target.saturates:
        _, reduction = without_saturation(
            lambda overrides: make_qdq(fusing.plan, ranges, overrides),
            lambda: samples.batches(size),
            fusing.model,
        )
    return QdqModels(
        reference=reference,
        inputs=inputs,
        settings=replace(settings, exclude=fusing.exclude),
        ranges=ranges,
        reduction=reduction,
    )


def _all_are_known(_plan: QdqPlan, _tensors: Sequence[str]) -> dict[str, Range]:
    return {}
