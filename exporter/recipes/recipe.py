"""The class `Recipe`, which contains all tables of a recipe."""

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

# The steps of every build, in order; the stages of the recipe run after the first step.
RESERVED_NAMES = ("pretrained", "export", "quantize", "parity", "gate")


class Recipe(FrozenModel):
    """A recipe: all settings of a build, from the checkpoint to the gated artifact."""

    name: Name = Field(
        description="Name of the artifact; its folder is `artifacts/NAME` unless `--out` names another."
    )
    seed: int = Field(0, ge=0, le=2**31 - 1, description="Seed of all random numbers in the build.")
    model: ModelConfig
    data: DataConfig
    train: TrainConfig = Field(default_factory=TrainConfig)
    stage: tuple[Stage, ...] = Field(
        (), description="Stages in PyTorch (training, pruning and so on), in the order in which they run."
    )
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
                        f"teacher {teacher!r} of stage {name!r} is not an earlier stage; "
                        f"choose one of: {', '.join(earlier)}"
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
                    "model.checkpoint, add an earlier stage that trains, or leave out from_scratch and "
                    "few_shot"
                )
            if isinstance(stage, QatConfig):
                self._check_qat(index, name)
            if isinstance(stage, ShrinkConfig) and stage.precision == "int8" and self.quantize.bits != 8:
                raise ValueError(
                    f"stage {name!r} measures int8 models, but quantize.bits is {self.quantize.bits}; "
                    'set its precision = "fp32"'
                )
        if self.model.checkpoint is None and not any(trains(s) for s in self.stage):
            raise ValueError(
                "the network is never trained; set model.checkpoint or add a stage that trains"
            )
        return self

    def _check_qat(self, index: int, name: str) -> None:
        if index + 1 < len(self.stage):
            raise ValueError(f"stage {name!r} is not the last stage; move it to the end")
        if self.quantize.repair or self.quantize.fallback is not None:
            raise ValueError(
                f"stage {name!r} trains the int8 model without repairs and fallback; "
                "remove quantize.repair and quantize.fallback"
            )
        if self.quantize.bits != 8:
            raise ValueError(
                f"stage {name!r} trains for 8 bits, but quantize.bits is {self.quantize.bits}; "
                "remove quantize.bits"
            )

    def stage_names(self) -> list[str]:
        """The name of each stage; see `numbered` for a stage without a name."""
        return numbered([(stage.name, stage.kind) for stage in self.stage])


def numbered(stages: Sequence[tuple[str | None, str]]) -> list[str]:
    """The names of stages, each given as (name or None, kind).

    A stage without a name is called by its kind; the second one of a kind is `KIND-2`, and so on.
    """
    names: list[str] = []
    for index, (name, kind) in enumerate(stages):
        before = sum(n is None and k == kind for n, k in stages[:index])
        names.append(name or (f"{kind}-{before + 1}" if before else kind))
    return names
