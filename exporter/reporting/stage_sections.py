"""What the report tells of single stages, as texts ready to be shown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bench.views.tables import milliseconds, percent
from exporter.results import (
    Costs,
    Epoch,
    FewShotPoint,
    FineTuneResult,
    NarrowingRound,
    PruneResult,
    ShrinkResult,
    StepResult,
    Trained,
)

# What a `shrink` stage compares: as its figures call it, and as people do.
_COSTS = (
    ("latency_ms", "latency"),
    ("macs", "multiply-adds"),
    ("params", "parameters"),
    ("size_bytes", "bytes of the file"),
)
# Figures of stages whose own name would say too little.
_SUMMARY_LABELS = {"zero_share": "zeros among all parameters", "sparsity": "zeros among eligible weights"}


@dataclass(frozen=True)
class FinishedStep:
    """A step of the build: its name, and what it found."""

    name: str
    result: StepResult


@dataclass(frozen=True)
class FewShotRow:
    """For one number of images what transfer bought, with its bounds over seeds."""

    images: str
    seeds: str
    transfer: str
    from_scratch: str
    gain: str
    bounds: str


@dataclass(frozen=True)
class LayerRow:
    """A layer or block that could go: what is left of it, and what cutting it alone would have done."""

    layer: str
    left: str = "–"
    level: str = "–"
    nats: str = "–"
    accuracy: str = "–"


@dataclass(frozen=True)
class ShrinkSection:
    """What a `shrink` stage was asked for, what it cut, and what it knew of each layer.

    Attributes:
        targets: key of the recipe, what was asked for, what was reached.
        costs: label, before, after, change.
    """

    name: str
    targets: tuple[tuple[str, str, str], ...]
    costs: tuple[tuple[str, str, str, str], ...]
    dropped: tuple[str, ...]
    layers: tuple[LayerRow, ...]


@dataclass(frozen=True)
class PruneSection:
    """What the zeros of a `prune` stage buy.

    Attributes:
        bytes: form of the weights, compressed bytes before, after, change.
    """

    name: str
    zero_share: str
    zeros: str
    parameters: str
    eligible_parameters: str
    sparsity: str
    bytes: tuple[tuple[str, str, str, str], ...]


def training_runs(steps: Sequence[FinishedStep]) -> Iterator[tuple[str, tuple[Epoch, ...]]]:
    """Name and curves of everything that was trained."""
    for step in steps:
        result = step.result
        if isinstance(result, Trained | ShrinkResult) and result.curves:
            yield step.name, result.curves
        if isinstance(result, FineTuneResult) and result.from_scratch is not None:
            yield f"{step.name}, from scratch", result.from_scratch.curves


def transfer_rows(steps: Sequence[FinishedStep]) -> Iterator[tuple[str, str, str, str]]:
    """What pretrained weights bought: stage, accuracy with them, without, and the difference."""
    for step in steps:
        if isinstance(step.result, FineTuneResult) and step.result.from_scratch is not None:
            with_transfer = step.result.evaluation_accuracy
            without = step.result.from_scratch.evaluation_accuracy
            gain = f"{(with_transfer - without) * 100:+.2f} points"
            yield step.name, percent(with_transfer), percent(without), gain


def few_shot_rows(points: Sequence[FewShotPoint]) -> list[FewShotRow]:
    """One row for each number of images."""
    return [
        FewShotRow(
            images=str(point.images),
            seeds=str(len(point.transfer)),
            transfer=percent(sum(point.transfer) / len(point.transfer)),
            from_scratch=percent(sum(point.from_scratch) / len(point.from_scratch)),
            gain=f"{point.gain.estimate * 100:+.2f} points",
            bounds=f"{point.gain.lower * 100:+.2f} … {point.gain.upper * 100:+.2f}",
        )
        for point in points
    ]


def shrink_sections(steps: Sequence[FinishedStep]) -> Iterator[ShrinkSection]:
    """One section for each `shrink` stage."""
    for step in steps:
        if isinstance(step.result, ShrinkResult):
            result = step.result
            yield ShrinkSection(
                step.name,
                tuple(_targets(result)),
                tuple(_cost_rows(result.before, result.after)),
                result.dropped,
                tuple(_layer_rows(result)),
            )


def prune_sections(steps: Sequence[FinishedStep]) -> Iterator[PruneSection]:
    """One section for each `prune` stage."""
    for step in steps:
        if isinstance(step.result, PruneResult):
            yield _prune_section(step.name, step.result)


def stage_summary(result: StepResult) -> str:
    """The plain figures of a stage in one line; lists and tables have their own place in the page."""
    parts = []
    for name, value in result.as_json().items():
        label = _SUMMARY_LABELS.get(name, name.replace("_", " "))
        if isinstance(value, bool | int | str):
            parts.append(f"{label} {value}")
        elif isinstance(value, float):
            parts.append(f"{label} {value:.4g}")
    return ", ".join(parts)


def _targets(result: ShrinkResult) -> Iterator[tuple[str, str, str]]:
    from exporter.training.shrinking.costs import Goal

    for name, limit in (result.goal or {}).items():
        reached = Goal(name, limit).reached(result.before, result.after)
        yield name, f"{limit:.4g}", f"{reached:.4g}"


def _cost_rows(before: Costs, after: Costs) -> Iterator[tuple[str, str, str, str]]:
    for column, label in _COSTS:
        first, then = getattr(before, column), getattr(after, column)
        change = f"{then / first:.3f} ×" if first else ""
        yield label, _cost_text(column, first), _cost_text(column, then), change
    if before.float_latency_ms is not None:
        yield "latency in float", _cost_text("latency_ms", before.float_latency_ms), "", ""


def _cost_text(column: str, value: float) -> str:
    return milliseconds(value * 1e6) if column == "latency_ms" else f"{value:,}"


def _layer_rows(result: ShrinkResult) -> Iterator[LayerRow]:
    """What could go is told of the whole network, thus by the first round; what is left, by the last."""
    rounds = [one for one in result.rounds if isinstance(one, NarrowingRound) and one.sensitivity]
    kept = {name: units for one in rounds for name, units in one.kept.items()}
    for name, curve in rounds[0].sensitivity.items() if rounds else ():
        level = min(curve, default=None)  # a layer of one channel has nothing to lose
        left = "–"
        if any(name == block or name.startswith(f"{block}.") for block in result.dropped):
            left = "gone"
        elif name in kept:
            units = rounds[0].units.get(name)
            left = str(kept[name]) if units is None else f"{kept[name]} of {units}"
        elif level == 0:
            left = "stays"
        if level is None:
            yield LayerRow(name, left)
        else:
            nats, accuracy = curve[level]
            yield LayerRow(name, left, str(level), f"{nats:.4f}", percent(accuracy))


def _prune_section(name: str, result: PruneResult) -> PruneSection:
    before, after = result.compressed_bytes_before, result.compressed_bytes
    forms = (("float", before.float, after.float), ("int8", before.int8, after.int8))
    return PruneSection(
        name,
        zero_share=percent(result.zero_share),
        zeros=f"{result.zeros:,}",
        parameters=f"{result.parameters:,}",
        eligible_parameters=f"{result.eligible_parameters:,}",
        sparsity=percent(result.sparsity),
        bytes=tuple(
            (form, f"{first:,}", f"{then:,}", f"{then / first:.3f} ×")
            for form, first, then in forms
            if first
        ),
    )
