"""The whole recipe."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field, model_validator

from bench.core.policy import Policy
from bench.core.schema import FrozenModel
from exporter.recipes.export import ExportConfig
from exporter.recipes.fields import Name
from exporter.recipes.finetune import FineTuneConfig
from exporter.recipes.hardware import BenchConfig, TrainConfig
from exporter.recipes.inputs import DataConfig, ModelConfig
from exporter.recipes.qat import QatConfig
from exporter.recipes.quantize import QuantizeConfig
from exporter.recipes.shrink import ShrinkConfig
from exporter.recipes.stages import Stage, teachers_of, trains

# The steps that every build has, in order; the stages run after the first.
RESERVED_NAMES = ("pretrained", "export", "quantize", "parity", "gate")


class Recipe(FrozenModel):
    """The whole way from a checkpoint to a gated artifact."""

    name: Name = Field(description="Name of the artifact.")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="Of everything random in the build.")
    model: ModelConfig
    data: DataConfig
    train: TrainConfig = Field(default_factory=TrainConfig)
    stage: tuple[Stage, ...] = Field((), description="Stages in PyTorch, in the order they run.")
    export: ExportConfig = Field(default_factory=ExportConfig)
    quantize: QuantizeConfig = Field(default_factory=QuantizeConfig)
    bench: BenchConfig = Field(default_factory=BenchConfig)
    gate: Policy = Field(default_factory=Policy)

    @model_validator(mode="after")
    def _stages_fit_together(self) -> Recipe:
        names = self.stage_names()
        for index, name in enumerate(names):
            if name in RESERVED_NAMES or name in names[:index]:
                raise ValueError(f"stage name {name!r} is taken; give the stage another name")
            stage = self.stage[index]
            earlier = ["pretrained", *names[:index]]
            for teacher in teachers_of(stage):
                if isinstance(teacher, str) and teacher not in earlier:
                    raise ValueError(
                        f"teacher {teacher!r} of stage {name!r} is no earlier stage; "
                        f"there are: {', '.join(earlier)}"
                    )
                if teacher == "pretrained" and self.model.checkpoint is None:
                    raise ValueError(
                        f"teacher 'pretrained' of stage {name!r} has random weights; set model.checkpoint, "
                        "or name a stage that trains"
                    )
            untrained = self.model.checkpoint is None and not any(map(trains, self.stage[:index]))
            if untrained and isinstance(stage, FineTuneConfig) and (stage.from_scratch or stage.few_shot):
                raise ValueError(
                    f"stage {name!r} would compare random weights with random weights; set "
                    "model.checkpoint or pretrain first, or leave from_scratch and few_shot out"
                )
            if isinstance(stage, QatConfig):
                self._check_qat(index, name)
            if isinstance(stage, ShrinkConfig) and stage.precision == "int8" and self.quantize.bits != 8:
                raise ValueError(f'stage {name!r} measures 8 bits; set its precision = "fp32"')
        if self.model.checkpoint is None and not any(trains(s) for s in self.stage):
            raise ValueError("nothing was ever trained: name model.checkpoint or add a stage that trains")
        return self

    def _check_qat(self, index: int, name: str) -> None:
        if index + 1 < len(self.stage):
            raise ValueError(f"stage {name!r} must be the last: others would undo what it learned")
        if self.quantize.repair or self.quantize.fallback is not None:
            raise ValueError(
                f"stage {name!r} trains the plain int8 model; remove quantize.repair and quantize.fallback"
            )
        if self.quantize.bits != 8:
            raise ValueError(f"stage {name!r} trains for 8 bits; remove quantize.bits")

    def stage_names(self) -> list[str]:
        """The name of each stage: its own, or its kind, numbered from the second of a kind on."""
        return numbered([(stage.name, stage.kind) for stage in self.stage])


def numbered(stages: Sequence[tuple[str | None, str]]) -> list[str]:
    """Names of stages given as (name or None, kind): the kind stands in, numbered from the second on."""
    names: list[str] = []
    for index, (name, kind) in enumerate(stages):
        before = sum(n is None and k == kind for n, k in stages[:index])
        names.append(name or (f"{kind}-{before + 1}" if before else kind))
    return names
