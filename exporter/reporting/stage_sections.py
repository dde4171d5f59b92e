"""Sections of the report about single stages, as formatted texts."""

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

# Costs that a `shrink` stage compares: name of the figure, and label in the report.
_COSTS = (
    ("latency_ms", "latency"),
    ("macs", "multiply-adds"),
    ("params", "parameters"),
    ("size_bytes", "bytes of the file"),
)
# Labels of figures whose names alone are unclear.
_SUMMARY_LABELS = {"zero_share": "zeros among all parameters", "sparsity": "zeros among eligible weights"}


@dataclass(frozen=True)
class FinishedStep:
    """The name and the result of a step."""

    name: str
    result: StepResult


@dataclass(frozen=True)
class FewShotRow:
    """A row of the few-shot table: accuracies for one number of images, and the gain with its bounds."""

    images: str
    seeds: str
    transfer: str
    from_scratch: str
    gain: str
    bounds: str


@dataclass(frozen=True)
class LayerRow:
    """A row about a layer or block that could be cut.

    Attributes:
        layer: name of the layer or block.
        left: number of units of the layer after the stage; `removed` if the layer or block was dropped;
            `kept` for a block that was not dropped.
        level: number of units to which only this layer or block was cut, as a test.
        nats: divergence of the outputs in the test of `level`, in nats.
        accuracy: accuracy of the network in the test of `level`.
    """

    layer: str
    left: str = "–"
    level: str = "–"
    nats: str = "–"
    accuracy: str = "–"


@dataclass(frozen=True)
class ShrinkSection:
    """The section of a `shrink` stage.

    Attributes:
        name: name of the stage.
        targets: (key of the recipe, requested value, reached value).
        costs: (label, before, after, change).
        dropped: names of the blocks that were removed.
        layers: a row for each layer or block that could be cut.
    """

    name: str
    targets: tuple[tuple[str, str, str], ...]
    costs: tuple[tuple[str, str, str, str], ...]
    dropped: tuple[str, ...]
    layers: tuple[LayerRow, ...]


@dataclass(frozen=True)
class PruneSection:
    """The section of a `prune` stage.

    Attributes:
        name: name of the stage.
        zero_share: fraction of zeros among all parameters.
        zeros: number of parameters that are zero.
        parameters: number of all parameters.
        eligible_parameters: number of prunable weights.
        sparsity: fraction of zeros among the prunable weights.
        bytes: (number format of the weights, compressed bytes before, compressed bytes after, change).
    """

    name: str
    zero_share: str
    zeros: str
    parameters: str
    eligible_parameters: str
    sparsity: str
    bytes: tuple[tuple[str, str, str, str], ...]


def training_runs(steps: Sequence[FinishedStep]) -> Iterator[tuple[str, tuple[Epoch, ...]]]:
    """Name and curves of each training."""
    for step in steps:
        result = step.result
        if isinstance(result, Trained | ShrinkResult) and result.curves:
            yield step.name, result.curves
        if isinstance(result, FineTuneResult) and result.from_scratch is not None:
            yield f"{step.name}, from scratch", result.from_scratch.curves


def transfer_rows(steps: Sequence[FinishedStep]) -> Iterator[tuple[str, str, str, str]]:
    """Rows about the gain from pretrained weights: stage, accuracy with and without them, difference."""
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
    """The scalar figures of a stage in one line; lists and tables have their own sections."""
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
    """Rows about the layers and blocks that could be cut.

    The effect of each cut alone is from the first round, because the network is still uncut in that round.
    The number of units left is from the last round.
    """
    rounds = [one for one in result.rounds if isinstance(one, NarrowingRound) and one.sensitivity]
    kept = {name: units for one in rounds for name, units in one.kept.items()}
    for name, curve in rounds[0].sensitivity.items() if rounds else ():
        level = min(curve, default=None)  # None for a layer with one channel, which cannot be cut
        left = "–"
        if any(name == block or name.startswith(f"{block}.") for block in result.dropped):
            left = "removed"
        elif name in kept:
            units = rounds[0].units.get(name)
            left = str(kept[name]) if units is None else f"{kept[name]} of {units}"
        elif level == 0:
            left = "kept"
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
