"""Quantize a model according to a recipe, with samples of its calibration split."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import onnx

from bench.core.arrays import Array
from bench.core.errors import DataError
from bench.core.progress import Progress
from exporter.graphs.targets import Target
from exporter.graphs.trained_qparams import NO_TRAINED_QPARAMS, TrainedQparams
from exporter.inspection.same_outputs import answers_of, few_samples
from exporter.quantization.calibration import RangeStore
from exporter.quantization.checked import quantize_checked
from exporter.quantization.faithful import Judged
from exporter.quantization.fastest import Race
from exporter.quantization.int4 import quantize_weights
from exporter.quantization.int8 import Int8Settings, quantize_model
from exporter.quantization.int8_repaired import Finish, RepairSettings, quantize_repaired
from exporter.quantization.repair.held_out import MAX_HELD_OUT, MIN_HELD_OUT, RepairSamples, hold_out
from exporter.recipes import QuantizeConfig
from exporter.results import Int4Model, Int8Model
from exporter.sources.held_out import rows_to_judge
from exporter.sources.splits import Split, stratified_indices

DEFAULT_SAMPLES = 256


def quantize_split(
    source: Path,
    destination: Path,
    calibration: Split,
    config: QuantizeConfig,
    target: Target,
    *,
    seed: int,
    progress: Progress,
    store: RangeStore | None = None,
    race: Race | None = None,
    trained_qparams: TrainedQparams = NO_TRAINED_QPARAMS,
) -> Int8Model | Int4Model:
    """Quantize a float model as a recipe specifies.

    A stratified draw of `config.samples` from the calibration split determines the ranges. The rest of the
    split judges repairs; if the rest has too few samples, a quarter of the drawn samples judges them
    instead. Ranges and levels learned with the weights are used unchanged; a recipe has either these or
    repairs.

    Args:
        source: the float model with folded BatchNorm.
        destination: the file to write.
        calibration: the calibration split, preprocessed as on a device.
        config: how to quantize.
        target: the kind of CPU, which determines the types.
        seed: seed of the draw.
        progress: receives the progress.
        store: stored ranges of earlier builds; None to collect all ranges.
        race: the float model to be faster than, and the goal; None neither compares nor times the result.
        trained_qparams: ranges and levels that the weights were fitted to.

    Raises:
        DataError: there are too few samples.
        ExportError: an excluded node does not exist, ONNX Runtime rejects the model, or no configuration
            meets the fallback's budget.
        SlowerError: int8 is slower than float on this CPU, and the goal is speed.
    """
    model = onnx.load(source)
    if config.bits == 4:
        return quantize_weights(
            model, destination, block_size=config.block_size, exclude=config.exclude, target=target
        )
    settings = Int8Settings(target, config.method, config.exclude, all_may_be_excluded=True)
    chosen, others = _draw(calibration, config, seed)
    finish: Finish = quantize_model
    if race is not None:
        judged = _judged(source, calibration, chosen, others)
        finish = partial(quantize_checked, judged=judged, race=race)
    repairs = RepairSettings(config.repair, config.fallback)
    if repairs.asked:
        repaired = _for_repairs(calibration, chosen, others)
        return quantize_repaired(
            model, destination, repaired, settings, repairs, finish=finish, progress=progress
        )
    samples = calibration.take(chosen)
    return finish(
        model,
        destination,
        samples,
        settings,
        progress=progress,
        store=store,
        trained_qparams=trained_qparams,
    )


def sample_count(calibration: Split, config: QuantizeConfig) -> int:
    """The number of calibration samples to use.

    Raises:
        DataError: the recipe requests more samples than the split has.
    """
    if config.samples is None:
        return min(DEFAULT_SAMPLES, calibration.count)
    if config.samples > calibration.count:
        raise DataError(
            "quantize.samples",
            f"{config.samples} samples are requested, but the calibration split has {calibration.count}",
            f"set samples to at most {calibration.count}",
        )
    return config.samples


def _judged(source: Path, calibration: Split, chosen: Array, others: Array) -> Judged:
    """The float model's outputs for samples that do not calibrate, or for calibration samples if needed."""
    held_out = len(others) > 0
    rows = others if held_out else chosen
    few = calibration.take(rows[list(rows_to_judge(len(rows)))])
    return Judged(answers_of(source, few_samples(few.inputs, None)), held_out=held_out)


def _for_repairs(calibration: Split, chosen: Array, others: Array) -> RepairSamples:
    """Samples to fit repairs on, and others to judge them."""
    fitted = calibration.take(chosen)
    if len(others) < MIN_HELD_OUT:
        return hold_out(fitted.inputs, fitted.labels)
    held_out = calibration.take(others)
    return RepairSamples(fitted.inputs, held_out.inputs, held_out.labels)


def _draw(calibration: Split, config: QuantizeConfig, seed: int) -> tuple[Array, Array]:
    """Draw calibration samples and up to `MAX_HELD_OUT` others, both stratified; return their indices."""
    count = sample_count(calibration, config)
    sizes = {"calibration": count, "held_out": min(calibration.count - count, MAX_HELD_OUT)}
    drawn = stratified_indices(calibration.labels, sizes, seed, "quantize.samples")
    return drawn["calibration"], drawn["held_out"]
