"""The plan of a build: its steps, in the order in which they run."""

from __future__ import annotations

from pathlib import Path

from bench.inputs.host import fingerprint, host_target, other_target
from exporter.caching.steps import Step
from exporter.errors import StageError
from exporter.graphs.rewrites.processing import as_shipped
from exporter.onnx_export.export import check_opset, open_axes
from exporter.pipeline.export_step import ExportStep
from exporter.pipeline.gate_step import GateStep
from exporter.pipeline.parity_step import ParityStep
from exporter.pipeline.pretrained_step import PretrainedStep
from exporter.pipeline.quantize_step import QuantizeStep
from exporter.pipeline.resolved_recipe import ResolvedRecipe
from exporter.pipeline.train_step import TrainStep
from exporter.quantization.split import sample_count
from exporter.recipes import QatConfig, teachers_of
from exporter.training.loop.hardware import check_hardware


def plan_steps(resolved: ResolvedRecipe, *, reuse: Path | None = None) -> list[Step]:
    """Check a recipe, and return all its steps in order.

    Args:
        resolved: the recipe.
        reuse: folder in which builds share activation ranges and layer times; None shares nothing.

    Raises:
        EdgeproofError: a late step of the build would fail.
    """
    _check(resolved)
    recipe = resolved.recipe
    steps: list[Step] = [PretrainedStep(resolved)]
    for name, config in zip(recipe.stage_names(), recipe.stage, strict=True):
        steps.append(TrainStep(resolved, name, config, previous=steps[-1].name, reuse=reuse))
    trained = steps[-1].name
    # Weights that `qat` trained for rounding have a lower accuracy without rounding. As a float baseline
    # they would hide a loss of int8. The real alternative to int8 is the network before `qat`, so this
    # network is the baseline.
    learned_rounding = any(isinstance(stage, QatConfig) for stage in recipe.stage)
    baseline = steps[-2].name if learned_rounding else trained
    return [
        *steps,
        ExportStep(resolved, trained, baseline),
        QuantizeStep(resolved, reuse),
        ParityStep(resolved, trained, baseline),
        GateStep(resolved),
    ]


def _check(resolved: ResolvedRecipe) -> None:
    """Refuse settings that would fail only after hours of work; warn if the target is not this CPU."""
    recipe, data = resolved.recipe, resolved.data
    if (other := other_target(resolved.target().name, here := fingerprint())) is not None:
        resolved.progress.say(
            f"warning: quantize.target is {other}, but this CPU is {host_target(here)}: stages measure "
            "times on this CPU, and the gate stays INCONCLUSIVE until it runs on the target"
        )
    check_hardware(recipe)
    _check_teachers(resolved)
    sample_count(data.calibration, recipe.quantize)
    check_opset(recipe.export.opset)
    open_axes(data.calibration, recipe.export)
    for split in (data.calibration, data.evaluation):
        as_shipped(split, recipe.export.preprocess)


def _check_teachers(resolved: ResolvedRecipe) -> None:
    """Refuse `pretrained` as a teacher if its last layer is new and therefore has random weights."""
    recipe = resolved.recipe
    asked = [
        name
        for name, stage in zip(recipe.stage_names(), recipe.stage, strict=True)
        if "pretrained" in teachers_of(stage)
    ]
    if asked and (head := resolved.new_head()) is not None:
        raise StageError(
            f"{asked[0]}.teacher",
            f"'pretrained' has random weights in {head!r}, because the checkpoint has other classes",
            "name a stage that trains this layer",
        )
