"""The arguments of a stage, and its signature."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

from torch import nn

from bench.core.progress import Progress
from exporter.networks.network import Network
from exporter.recipes import DataConfig, ExportConfig, QuantizeConfig, Teacher, Training
from exporter.results import StepResult, Trained
from exporter.sources.splits import Splits
from exporter.training.loop import ONE_CPU, Checkpoints, Engine, Hook, Loss, fit


@dataclass(frozen=True, kw_only=True)
class Loaders:
    """Functions that load other networks and data for a stage.

    Attributes:
        teacher: returns the network of an earlier stage by name, or opens another model, for the given
            data.
        data: calls another data factory.
        unlabelled: calls a factory of samples without labels.
    """

    teacher: Callable[[Teacher, Splits], nn.Module]
    data: Callable[[DataConfig, str], Splits]
    unlabelled: Callable[[DataConfig, str], object]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of the build for export, quantization and measurement.

    Attributes:
        export: export settings of the recipe.
        quantize: quantization settings of the recipe.
        threads: number of threads of timed sessions.
        timings: folder that stores kernel times between builds; None stores nothing.
    """

    export: ExportConfig = field(default_factory=ExportConfig)
    quantize: QuantizeConfig = field(default_factory=QuantizeConfig)
    threads: int = 1
    timings: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Context:
    """Everything a stage receives from the build except its network and data.

    Attributes:
        name: name of the stage, for messages.
        seed: seed of the recipe.
        progress: receives progress updates.
        fresh_module: builds the recipe's network again, with random weights.
        load: loads other networks and data.
        settings: settings of the build for export, quantization and measurement.
        engine: the hardware to train on.
        checkpoints: stores running trainings; None stores nothing.
    """

    name: str
    seed: int
    progress: Progress
    fresh_module: Callable[[], nn.Module]
    load: Loaders
    settings: Settings = field(default_factory=Settings)
    engine: Engine = ONE_CPU
    checkpoints: Checkpoints | None = None

    def warned(self, lines: Iterable[str]) -> tuple[str, ...]:
        """Turn lines into warnings of this stage, and print them immediately."""
        warnings = tuple(f"{self.name}: {line}" for line in lines)
        for warning in warnings:
            self.progress.say(f"warning: {warning}")
        return warnings

    def fit(
        self,
        network: Network,
        data: Splits,
        config: Training,
        loss: Loss,
        *,
        name: str | None = None,
        hooks: Sequence[Hook] = (),
    ) -> Trained:
        """Run `loop.fit` with this context's settings.

        `name` distinguishes the trainings of a stage that has several.
        """
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


Config_contra = TypeVar("Config_contra", contravariant=True)
Result_co = TypeVar("Result_co", bound=StepResult, covariant=True)


class StageFunction(Protocol[Config_contra, Result_co]):
    """The signature of a stage; the type of `config` is the stage's own class in `exporter.recipes`."""

    def __call__(
        self, network: Network, config: Config_contra, data: Splits, context: Context
    ) -> tuple[Network, Result_co]:
        """Run the stage."""
