"""What every stage is given, and what it gives back."""

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
    """Other networks and data that a stage may load.

    Attributes:
        teacher: finds the network of an earlier stage by name, or opens another one, for these data.
        data: calls another data factory.
        unlabelled: calls a factory of samples without labels.
    """

    teacher: Callable[[Teacher, Splits], nn.Module]
    data: Callable[[DataConfig, str], Splits]
    unlabelled: Callable[[DataConfig, str], object]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How the build exports, quantizes and measures.

    Attributes:
        export: how the recipe exports.
        quantize: how it quantizes.
        threads: of sessions that are timed.
        timings: folder where times of kernels are kept between builds; None keeps nothing.
    """

    export: ExportConfig = field(default_factory=ExportConfig)
    quantize: QuantizeConfig = field(default_factory=QuantizeConfig)
    threads: int = 1
    timings: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a stage may ask of the build beside its network and data.

    Attributes:
        name: of the stage, for messages.
        seed: of the recipe.
        progress: where to tell how far it is.
        fresh_module: makes the recipe's network again, with random weights.
        load: other networks and data.
        settings: of the steps that follow the stages.
        engine: the hardware to train on.
        checkpoints: where trainings are kept while they run; None keeps none.
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
        """The lines as warnings of this stage; a person is told of them at once."""
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


Config_contra = TypeVar("Config_contra", contravariant=True)
Result_co = TypeVar("Result_co", bound=StepResult, covariant=True)


class StageFunction(Protocol[Config_contra, Result_co]):
    """The signature of a stage. `config` is of the stage's own class from `exporter.recipes`."""

    def __call__(
        self, network: Network, config: Config_contra, data: Splits, context: Context
    ) -> tuple[Network, Result_co]:
        """Run the stage."""
