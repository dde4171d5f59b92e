"""Quantizing with repairs: what each bought on held-out samples, and layers left in float if need be."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx

from bench.core.arrays import Array
from bench.core.errors import DataError, UsageError
from bench.core.progress import Progress
from bench.metrics.parity import sqnr_db
from exporter.errors import ExportError
from exporter.graphs.layers import with_constants_of
from exporter.graphs.names import name_nodes
from exporter.graphs.targets import Target
from exporter.graphs.trained_qparams import NO_TRAINED_QPARAMS, TrainedQparams
from exporter.quantization.calibration import RangeStore
from exporter.quantization.int4 import quantize_weights
from exporter.quantization.int8 import quantize, quantize_model, sample_count, take_shortcuts
from exporter.quantization.qdq import check_exclude
from exporter.quantization.repair import REPAIRS, RepairContext
from exporter.quantization.repair.fallback import (
    Candidate,
    Fallback,
    layers_of_tensors,
    rounding_layers,
    search,
    within,
)
from exporter.quantization.repair.qdq_models import QdqModels
from exporter.quantization.repair.score import Judge, Score, outputs_of
from exporter.quantization.repair.timing import float_costs
from exporter.recipes import FallbackConfig, QuantizeConfig, repair_order_problem
from exporter.recipes.options import PRESERVING_REPAIRS, CalibrationMethod, RepairName
from exporter.sources.splits import ArraySamples, Split, stratified_indices

# A share of one sample in 64 is the least drop that can be told from none.
MIN_HELD_OUT, MAX_HELD_OUT = 64, 512
HELD_OUT_SHARE = 0.25
# Held-out samples are few and like those that were fitted to: bias correction that gained 0.2 dB on them
# lost 0.3 dB on other pictures (EfficientNet-Lite0, ImageNet weights, after AdaRound).
MIN_GAIN_DB = 0.5
# As the export itself is held to. Rounding leaves more than 100 dB; a channel that passes a clip which no
# calibration sample reached, but a held-out one did, leaves less.
PRESERVED_SQNR_DB = 50.0
_JUDGE_BATCH = 8
# Candidates whose cost is measured, for each layer that may stay in float.
TIMED_PER_LAYER = 3


@dataclass(frozen=True)
class Repairing:
    """What to do beyond plain quantization.

    Attributes:
        repair: names of repairs, in the order they are tried.
        fallback: the budget that layers are left in float for, or None.
    """

    repair: tuple[RepairName, ...] = ()
    fallback: FallbackConfig | None = None

    @property
    def asked(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.repair) or self.fallback is not None


NO_REPAIR = Repairing()


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
    trained_qparams: TrainedQparams = NO_TRAINED_QPARAMS,
) -> dict[str, Any]:
    """Quantize a float model as a recipe asks for it.

    `config.samples` of the calibration split, drawn with the classes in proportion, give the ranges. What
    remains of the split judges repairs; if that is too little, a quarter of the drawn samples does. What
    was learned with the weights is taken as it is; a recipe has that or repairs.

    Raises:
        DataError: too few samples.
        ExportError: an excluded node does not exist, ONNX Runtime refuses the model, or no configuration
            meets the fallback's budget.
    """
    if config.bits == 4:
        return quantize_weights(
            onnx.load(source),
            destination,
            block_size=config.block_size,
            exclude=config.exclude,
            target=target,
        )
    repairing = Repairing(config.repair, config.fallback)
    if not repairing.asked:
        return quantize(
            source,
            destination,
            calibration,
            config,
            target,
            seed=seed,
            progress=progress,
            store=store,
            trained_qparams=trained_qparams,
        )
    count = sample_count(calibration, config)
    rest = min(calibration.count - count, MAX_HELD_OUT)
    sizes = {"calibration": count, "held_out": rest if rest >= MIN_HELD_OUT else 0}
    drawn = stratified_indices(calibration.labels, sizes, seed, "quantize.samples")
    samples, held_out = (calibration.take(drawn[name]) for name in ("calibration", "held_out"))
    return quantize_repaired(
        onnx.load(source),
        destination,
        samples.inputs,
        samples.labels,
        held_out=(held_out.inputs, held_out.labels) if held_out.count else None,
        repairing=repairing,
        target=target,
        method=config.method,
        exclude=config.exclude,
        progress=progress,
    )


def quantize_repaired(
    model: onnx.ModelProto,
    destination: Path,
    inputs: Mapping[str, Array],
    labels: Array | None,
    *,
    repairing: Repairing,
    target: Target,
    method: CalibrationMethod,
    exclude: tuple[str, ...],
    progress: Progress,
    fixed_batch: int | None = None,
    held_out: tuple[Mapping[str, Array], Array | None] | None = None,
    accept: Callable[[Path], None] = lambda _written: None,
) -> dict[str, Any]:
    """Write a float model in int8, repaired.

    Args:
        model: the float model, BatchNorm folded.
        destination: the file to write.
        inputs: calibration samples, input name -> array [N, ...].
        labels: their class indices [N], or None.
        repairing: what to do beyond plain quantization.
        target: the CPU kind that decides types.
        method: how activation ranges are chosen.
        exclude: names of nodes to leave in float in any case.
        progress: told how far it is.
        fixed_batch: the batch size that the model insists on, or None.
        held_out: samples and labels that judge; by default a quarter of `inputs`, which then gives no
            ranges.
        accept: called with the finished file before it takes its place.

    Raises:
        UsageError: repairs that are unknown or do not fit together.
        DataError: too few samples.
        ExportError: an excluded node does not exist, ONNX Runtime refuses the model, or no configuration
            meets the fallback's budget.
    """
    if not repairing.asked:
        return quantize_model(
            model,
            destination,
            ArraySamples(inputs),
            target=target,
            method=method,
            exclude=exclude,
            progress=progress,
            fixed_batch=fixed_batch,
            accept=accept,
        )
    check_repairs(repairing.repair)
    check_exclude(model, exclude)
    source, model = model, onnx.ModelProto()
    model.CopyFrom(source)
    name_nodes(model)
    if held_out is None:
        inputs, held_out = _hold_out(inputs, labels, fixed_batch)
    models = QdqModels(inputs, target, method, exclude, fixed_batch, progress)
    judge = Judge(model, *held_out, fixed_batch or _JUDGE_BATCH)
    pipeline = _Pipeline(models, judge, target, progress)
    reference, repaired, reports = pipeline.repair(model, repairing.repair)
    left: dict[str, Any] = {}
    if repairing.fallback is not None:
        repaired, left = pipeline.fall_back(repaired, reference, repairing.fallback)
        exclude = (*exclude, *left["exclude"])
    metrics = quantize_model(
        repaired,
        destination,
        ArraySamples(inputs),
        target=target,
        method=method,
        exclude=exclude,
        progress=progress,
        fixed_batch=fixed_batch,
        reference=reference,
        trained_qparams=TrainedQparams(steps=models.reduction.levels),
        accept=accept,
    )
    extra: dict[str, Any] = {"held_out_samples": len(next(iter(judge.inputs.values()))), "repairs": reports}
    return {**metrics, **extra, **({"fallback": left} if left else {})}


def check_repairs(names: Sequence[str]) -> tuple[RepairName, ...]:
    """The names as repairs, once it is clear that all are known and fit together.

    Raises:
        UsageError: with those there are.
    """
    for name in names:
        if name not in REPAIRS:
            raise UsageError("repair", f"there is no repair {name!r}", f"choose of: {', '.join(REPAIRS)}")
    if (problem := repair_order_problem(names)) is not None:
        raise UsageError("repair", problem, "mend the list")
    return cast("tuple[RepairName, ...]", tuple(names))


@dataclass(frozen=True)
class _Pipeline:
    """The means that repairs and the fallback search share."""

    models: QdqModels
    judge: Judge
    target: Target
    progress: Progress

    def repair(
        self, model: onnx.ModelProto, names: Sequence[RepairName]
    ) -> tuple[onnx.ModelProto, onnx.ModelProto, list[dict[str, Any]]]:
        """Try repairs one upon the other: the reference, the repaired model, and what each bought."""
        reference = model
        self.models.calibrate(reference)
        before = self.judge.score(self.models.make(model))
        reports = []
        for name in names:
            context = RepairContext(
                self.models.inputs,
                self.models.batch_size(model),
                reference,
                self.models.make,
                self.target.per_channel,
                self.progress,
            )
            candidate, found = REPAIRS[name](model, context)
            preserving = name in PRESERVING_REPAIRS
            why = self._changed(candidate) if preserving else None
            after = before
            if why is None:
                if preserving:
                    self.models.calibrate(candidate)
                after = self.judge.score(self.models.make(candidate))
                if after.sqnr_db < before.sqnr_db + MIN_GAIN_DB:
                    why = f"it did not bring int8 {MIN_GAIN_DB} dB nearer to float on held-out samples"
            report = _report(name, before, after, why, found)
            self.progress.say(_line(report))
            reports.append(report)
            if why is None:
                model, before = candidate, after
                reference = candidate if preserving else reference
            elif preserving:
                self.models.calibrate(reference)
        return reference, model, reports

    def _changed(self, candidate: onnx.ModelProto) -> str | None:
        """Why a repair that should have kept the float function did not, or None."""
        found = outputs_of(candidate, self.judge.inputs, self.judge.batch_size)
        near = sqnr_db(self.judge.wanted, found)
        if np.isfinite(found).all() and near >= PRESERVED_SQNR_DB:
            return None
        return f"it changed the float model (SQNR {near:.0f} dB)"

    def fall_back(
        self, model: onnx.ModelProto, reference: onnx.ModelProto, config: FallbackConfig
    ) -> tuple[onnx.ModelProto, dict[str, Any]]:
        """Search for layers to leave in float: the model, their weights as before repairs, and the report.

        Raises:
            ExportError: no configuration meets the budget.
        """

        def with_float(exclude: tuple[str, ...]) -> onnx.ModelProto:
            # What a repair bent for int8 is an error where nothing is rounded.
            return with_constants_of(model, reference, exclude)

        def qdq_model(exclude: tuple[str, ...]) -> onnx.ModelProto:
            return self.models.make(with_float(exclude), exclude)

        before = self.judge.score(qdq_model(()))
        if within(before, config):
            return model, _fallback_json(Fallback((), before, met=True, tried=1), before, [])
        layers = rounding_layers(model, self.models.plan(model).options.placement.nodes)
        int8_ns, candidates = self.candidates(model, layers, qdq_model, config)
        with self.progress.task("fallback", 2 * config.max_layers) as task:

            def score(exclude: tuple[str, ...]) -> Score:
                task.advance()
                return self.judge.score(qdq_model(exclude)) if exclude else before

            found = search(candidates, score, config, order=tuple(layers), int8_ns=int8_ns)
        if not found.met:
            raise ExportError("quantize.fallback", *_unmet(found, config))
        return with_float(found.exclude), _fallback_json(found, before, candidates)

    def candidates(
        self,
        model: onnx.ModelProto,
        layers: Mapping[str, tuple[str, ...]],
        qdq_model: Callable[[tuple[str, ...]], onnx.ModelProto],
        config: FallbackConfig,
    ) -> tuple[float, list[Candidate]]:
        """The int8 model's time, and what takes off most noise in float, with what that costs."""
        sets = [(layer,) for layer in layers] + layers_of_tensors(model, layers)
        sets = [together for together in sets if len(together) <= config.max_layers]
        found = []
        with self.progress.task("sensitivity", len(sets)) as task:
            for together in sets:
                found.append(Candidate(together, self.judge.score(qdq_model(together)).sqnr_db, 0.0))
                task.advance()
        found.sort(key=lambda candidate: -candidate.sqnr_db)
        kept = {candidate.layers: candidate for candidate in found[: TIMED_PER_LAYER * config.max_layers]}
        size = self.models.fixed_batch or 1
        feeds = {name: np.ascontiguousarray(array[:size]) for name, array in self.judge.inputs.items()}
        with self.progress.task("cost in float", len(kept)) as task:

            def shipped(exclude: tuple[str, ...]) -> onnx.ModelProto:
                model = qdq_model(exclude)
                take_shortcuts(model, self.target)
                return model

            def variants() -> Iterator[tuple[tuple[str, ...], onnx.ModelProto]]:
                for together in kept:
                    yield together, shipped(together)
                    task.advance()

            int8_ns, costs = float_costs(shipped(()), variants(), feeds)
        return int8_ns, [dataclasses.replace(c, cost_ns=costs[c.layers]) for c in kept.values()]


def _hold_out(
    inputs: Mapping[str, Array], labels: Array | None, fixed_batch: int | None
) -> tuple[dict[str, Array], tuple[dict[str, Array], Array | None]]:
    """Keep every fourth sample, or as near as the batch size allows, for judging."""
    count = len(next(iter(inputs.values())))
    unit = fixed_batch or 1
    wanted = max(unit, round(min(HELD_OUT_SHARE * count, MAX_HELD_OUT) / unit) * unit)
    if count - wanted < unit or count < 2:
        raise DataError(
            "calibration",
            f"{count} samples are too few to hold some out, on which repairs are judged",
            "give more samples, or ask for no repair",
        )
    chosen = np.zeros(count, dtype=bool)
    chosen[np.linspace(0, count - 1, wanted).astype(int)] = True
    fitted = {name: array[~chosen] for name, array in inputs.items()}
    return fitted, (
        {name: array[chosen] for name, array in inputs.items()},
        None if labels is None else labels[chosen],
    )


def _report(
    name: str, before: Score, after: Score, why: str | None, found: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "repair": name,
        "kept": why is None,
        "reason": why or "",
        "sqnr_db_before": before.sqnr_db,
        "sqnr_db_after": after.sqnr_db,
        "agreement_before": before.agreement,
        "agreement_after": after.agreement,
        **found,
    }


def _line(report: Mapping[str, Any]) -> str:
    text = (
        f"{report['repair']}: SQNR {report['sqnr_db_before']:.1f} to {report['sqnr_db_after']:.1f} dB, "
        f"agreement {report['agreement_before']:.2%} to {report['agreement_after']:.2%}"
    )
    return text if report["kept"] else f"{text}; not kept: {report['reason']}"


def _fallback_json(found: Fallback, before: Score, candidates: Sequence[Candidate]) -> dict[str, Any]:
    return {
        "exclude": list(found.exclude),
        "tried": found.tried,
        "before": before.as_json(),
        "after": found.score.as_json(),
        "candidates": [dataclasses.asdict(candidate) for candidate in candidates],
    }


def _unmet(found: Fallback, config: FallbackConfig) -> tuple[str, str]:
    """Cause and fix of a budget that no configuration meets."""
    wanted = f"at most {config.max_drop:.2%} are allowed"
    if config.min_sqnr_db is not None:
        wanted += f" and {config.min_sqnr_db:.1f} dB are wanted"
    kept = ", ".join(found.exclude) or "nothing"
    return (
        f"no configuration meets the budget: the best of {found.tried}, with {kept} in float, loses "
        f"{found.score.drop:.2%} at {found.score.sqnr_db:.1f} dB; {wanted}",
        f"raise max_drop, or max_layers (now {config.max_layers}), or add repairs",
    )
