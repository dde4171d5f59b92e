"""The classes of a recipe: immutable, strictly typed and documented values that are read from TOML.

Each file holds one theme. `recipe_schema` builds a JSON Schema from these classes, which is published as
`docs/recipe.schema.json`. Editors use it to complete and check recipes.
"""

from __future__ import annotations

from exporter.recipes.distill import DistillConfig, TransferConfig
from exporter.recipes.export import ExportConfig, PostprocessConfig, PreprocessConfig
from exporter.recipes.finetune import FewShotConfig, FineTuneConfig, PretrainConfig
from exporter.recipes.hardware import BenchConfig, TrainConfig
from exporter.recipes.inputs import DataConfig, ModelConfig, OnnxTeacherConfig, Teacher, TeacherConfig
from exporter.recipes.prune import GradualConfig, PruneConfig, PruneTarget
from exporter.recipes.qat import QatConfig, ReestimateConfig
from exporter.recipes.quantize import FallbackConfig, QuantizeConfig, repair_order_problem
from exporter.recipes.reading import read_recipe, recipe_from
from exporter.recipes.recipe import RESERVED_NAMES, Recipe
from exporter.recipes.schema import recipe_schema
from exporter.recipes.shrink import ShrinkConfig, ShrinkTarget
from exporter.recipes.stages import Stage, teachers_of, trains
from exporter.recipes.training import StageConfig, SupervisedConfig, Training

__all__ = [
    "RESERVED_NAMES",
    "BenchConfig",
    "DataConfig",
    "DistillConfig",
    "ExportConfig",
    "FallbackConfig",
    "FewShotConfig",
    "FineTuneConfig",
    "GradualConfig",
    "ModelConfig",
    "OnnxTeacherConfig",
    "PostprocessConfig",
    "PreprocessConfig",
    "PretrainConfig",
    "PruneConfig",
    "PruneTarget",
    "QatConfig",
    "QuantizeConfig",
    "Recipe",
    "ReestimateConfig",
    "ShrinkConfig",
    "ShrinkTarget",
    "Stage",
    "StageConfig",
    "SupervisedConfig",
    "Teacher",
    "TeacherConfig",
    "TrainConfig",
    "Training",
    "TransferConfig",
    "read_recipe",
    "recipe_from",
    "recipe_schema",
    "repair_order_problem",
    "teachers_of",
    "trains",
]
