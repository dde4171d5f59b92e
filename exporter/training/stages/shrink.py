"""Structured pruning: fewer channels, fewer blocks and smaller pictures, followed by training."""

from __future__ import annotations

import copy
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from exporter.errors import StageError
from exporter.networks.network import Network, accuracy
from exporter.networks.rebuild import rebuild
from exporter.networks.shrink_plan import Plan, compose
from exporter.recipes import ShrinkConfig
from exporter.results import Cut, NarrowingRound, Round, ShrinkResult, Trained
from exporter.sources.splits import Split, Splits, stratified_indices
from exporter.training.distillation.losses import Distillation
from exporter.training.loop import Loss, check_classes, check_modules, hold_out
from exporter.training.loop.checkpoints import Saved, Values
from exporter.training.shrinking.costs import CostComparison, Goal
from exporter.training.shrinking.meter import Exported, HostMeter, Meter
from exporter.training.shrinking.narrowing import Narrower
from exporter.training.shrinking.structure import failure
from exporter.training.stages.base import Context
from exporter.training.stages.distill import load_teachers
from exporter.training.stages.labelled_loss import cross_entropy


class _PlannedCut(Values):
    """The cut of a round as stored in a checkpoint."""

    plan: Plan
    cut: Cut


def shrink(
    network: Network, config: ShrinkConfig, data: Splits, context: Context
) -> tuple[Network, ShrinkResult]:
    """Shrink the network until measurements on this CPU meet the target, and train it again."""
    with tempfile.TemporaryDirectory(prefix="edgeproof-") as folder:
        meter = HostMeter(
            folder=Path(folder),
            sample=data.calibration,
            precision=config.precision,
            export_config=context.settings.export,
            quantize_config=context.settings.quantize,
            threads=context.settings.threads,
            timings=context.settings.timings,
        )
        return shrink_with(meter, network, config, data, context)


def shrink_with(
    meter: Meter[Exported], network: Network, config: ShrinkConfig, data: Splits, context: Context
) -> tuple[Network, ShrinkResult]:
    """Shrink the network and train it again, with measurements from `meter`.

    1. Drop the blocks in `drop`, and scale pictures to `resolution`.
    2. In each round, shrink the network by the round's part of the way to the target
       (`shrinking.narrowing`), then train.

    A round's cut is stored next to the checkpoints of its training. A stage that was killed therefore
    continues with the same network, even if a new measurement would lead to another choice.

    Raises:
        StageError: a module does not exist, a block cannot be dropped, or the target cannot be met; the
            message states the best value reached.
    """
    classes = check_classes(network.module, data, context.name)
    check_modules(network.module, (*config.exclude, *config.drop), context.name)
    before = accuracy(network.module, data.evaluation)
    loss = _recovery_loss(config, data, context, classes)
    inputs = _tensors(data.calibration.first(2))
    goal = None if config.target is None else Goal(*config.target.chosen())
    in_float = goal is not None and goal.needs_float
    comparison = CostComparison(meter, network.module, inputs, in_float=in_float)
    network = cut(network, _chosen(network, config, inputs, context.name))
    narrower = Narrower(
        config=config,
        comparison=comparison,
        table=meter.table(),
        inputs=inputs,
        judges=_judges(config, data, context),
        place=context.name,
        progress=context.progress,
    )
    rounds: list[NarrowingRound | Round] = []
    count = 1 if goal is None else config.rounds
    for index in range(count):
        turn = context if count == 1 else replace(context, name=f"{context.name} round {index + 1}")
        made: Cut | None = None
        if goal is not None:
            network, made = _narrow(network, narrower, goal, count - index, turn)
        rounds.append(_recover(network, config, data, turn, loss=loss, made=made))
    plan = network.plan
    assert plan is not None
    costs_before, costs_after = comparison.compare(network.module)
    outputs = {name: kept.outputs for name, kept in plan.modules.items()}
    idle = goal is not None and plan.resolution is None and not plan.dropped and not any(outputs.values())
    return network, ShrinkResult(
        warnings=context.warned(
            ["the network meets the target already, nothing was removed: lower the target"] if idle else []
        ),
        accuracy_before=before,
        evaluation_accuracy=rounds[-1].evaluation_accuracy,
        goal=None if goal is None else {goal.name: goal.limit},
        before=costs_before,
        after=costs_after,
        dropped=plan.dropped,
        widths={name: len(kept) for name, kept in outputs.items() if kept is not None},
        rounds=tuple(rounds),
        **dict(network.zero_counts()),
        curves=rounds[-1].curves,
    )


def _recover(
    network: Network, config: ShrinkConfig, data: Splits, context: Context, *, loss: Loss, made: Cut | None
) -> NarrowingRound | Round:
    """Train the network after a round's cut, if the stage trains; `made` is the record of the cut."""
    accuracy_cut = accuracy(network.module, data.evaluation)
    trained = context.fit(network, data, config, loss) if config.epochs else Trained()
    found = Round(
        accuracy_cut=accuracy_cut,
        evaluation_accuracy=accuracy(network.module, data.evaluation),
        **dict(trained),
    )
    return found if made is None else NarrowingRound(**dict(made), **dict(found))


def cut(network: Network, plan: Plan) -> Network:
    """Apply a plan to a network: to its module in place, to its masks, and to its earlier plan."""
    masks = dict(network.masks)
    if masks:
        # Cut the masks like weights: apply the plan to a copy of the network whose weights are the masks.
        shadow = copy.deepcopy(network.module)
        for name, mask in masks.items():
            shadow.get_parameter(name).data = mask.float()
        left = dict(rebuild(shadow, plan).named_parameters())
        masks = {name: left[name].detach() > 0 for name in masks if name in left}
    rebuild(network.module, plan)
    return replace(network, masks=masks, plan=compose(network.plan, plan))


def _chosen(network: Network, config: ShrinkConfig, inputs: dict[str, Tensor], place: str) -> Plan:
    """The plan for `drop` and `resolution` of the recipe; each block is tried first."""
    for name in config.drop:
        if problem := failure(network.module, inputs, Plan(dropped=(name,))):
            raise StageError(
                f"{place}.drop", f"{name!r} cannot be dropped: {problem}", "remove it from drop"
            )
    side = config.resolution
    largest = max((max(t.shape[2:]) for t in inputs.values() if t.dim() == 4), default=0)
    if side is not None and side > largest > 0:
        raise StageError(
            f"{place}.resolution",
            f"{side} is larger than the data's pictures, which have {largest} pixels",
            f"write at most {largest}",
        )
    plan = Plan(dropped=config.drop, resolution=None if side is None else (side, side))
    if problem := failure(network.module, inputs, plan):
        if side is None:
            raise StageError(
                f"{place}.drop",
                f"its blocks cannot be dropped together: {problem}",
                "list fewer blocks in drop",
            )
        raise StageError(
            f"{place}.resolution",
            f"{side} is not possible: {problem}",
            "raise resolution, or list fewer blocks in drop",
        )
    return plan


def _narrow(
    network: Network, narrower: Narrower, goal: Goal, rounds_left: int, context: Context
) -> tuple[Network, Cut]:
    """Apply the cut of one round: the one stored before the stage was killed, or a new one."""
    name, checkpoints = f"{context.name} cut", context.checkpoints
    saved = None if checkpoints is None else checkpoints.read(name, _PlannedCut)
    if saved is not None:
        return cut(network, saved.values.plan), saved.values.cut
    plan, made = narrower.plan(network.module, goal, rounds_left)
    if checkpoints is not None:
        checkpoints.write(name, Saved({}, _PlannedCut(plan=plan, cut=made)))
    return cut(network, plan), made


def _judges(config: ShrinkConfig, data: Splits, context: Context) -> Split:
    """Samples that no stage trains on: damage measured on training samples is underestimated."""
    held_out = hold_out(data.train, config.validation, context.seed, context.name)[1]
    count = {"samples": min(config.samples, held_out.count)}
    drawn = stratified_indices(held_out.labels, count, context.seed, context.name)
    return held_out.take(drawn["samples"])


def _recovery_loss(config: ShrinkConfig, data: Splits, context: Context, classes: int) -> Loss:
    """The loss with labels only, or with labels and teachers."""
    distillation = config.distillation()
    if distillation is None or not config.epochs:
        return cross_entropy()
    return Distillation(load_teachers(distillation, data, context, classes), distillation)


def _tensors(split: Split) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in split.inputs.items()}
