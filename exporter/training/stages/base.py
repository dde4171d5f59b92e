"""What every stage is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from bench.core.progress import Progress
from exporter.networks.network import Network
from exporter.recipes import (
    DataConfig,
    ExportConfig,
    OnnxTeacherConfig,
    QuantizeConfig,
    TeacherConfig,
    Training,
)
from exporter.sources.splits import Splits
from exporter.training.loop import ONE_CPU, Checkpoints, Engine, Fitted, Hook, Loss, fit

Metrics = dict[str, Any]


@dataclass(frozen=True)
class Context:
    """What a stage may ask of the build beside its network and data.

    Attributes:
        name: of the stage, for messages.
        seed: of the recipe.
        progress: where to tell how far it is.
        fresh_module: makes the recipe's network anew, with random weights.
        teacher: finds the network of an earlier stage by name, or opens another one, for these data.
        load_data: calls another data factory.
        load_unlabelled: calls a factory of samples without labels.
        engine: the hardware to train on.
        checkpoints: where trainings are kept while they run; None keeps none.
        export: how the recipe exports.
        quantize: how it quantizes.
        threads: of sessions that are timed.
        tables: folder where what was timed is kept between builds; None keeps nothing.
    """

    name: str
    seed: int
    progress: Progress
    fresh_module: Callable[[], nn.Module]
    teacher: Callable[[str | TeacherConfig | OnnxTeacherConfig, Splits], nn.Module]
    load_data: Callable[[DataConfig, str], Splits]
    load_unlabelled: Callable[[DataConfig, str], object]
    engine: Engine = ONE_CPU
    checkpoints: Checkpoints | None = None
    export: ExportConfig = field(default_factory=ExportConfig)
    quantize: QuantizeConfig = field(default_factory=QuantizeConfig)
    threads: int = 1
    tables: Path | None = None

    def warned(self, lines: Sequence[str]) -> Metrics:
        """Metrics of what a person should look at, who is told of it at once."""
        warnings = [f"{self.name}: {line}" for line in lines]
        for warning in warnings:
            self.progress.say(f"warning: {warning}")
        return {"warnings": warnings} if warnings else {}

    def fit(
        self,
        network: Network,
        data: Splits,
        config: Training,
        loss: Loss,
        *,
        name: str | None = None,
        hooks: Sequence[Hook] = (),
    ) -> Fitted:
        """`loop.fit` with what the build decides; `name` tells a stage's trainings apart."""
        return fit(
            network,
            data,
            config,
            loss,
            seed=self.seed,
            name=name or self.name,
            progress=self.progress,
            hooks=hooks,
            checkpoints=self.checkpoints,
            engine=self.engine,
        )


class StageFunction(Protocol):
    """The signature of a stage. `config` is the stage's own class from `exporter.recipes.recipe`."""

    def __call__(
        self, network: Network, config: Any, data: Splits, context: Context
    ) -> tuple[Network, Metrics]:
        """Run the stage."""
