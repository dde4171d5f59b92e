"""Where networks, weights, teachers and samples come from."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from bench.core.schema import FrozenModel
from exporter.recipes.fields import Arguments, Reference


class ModelConfig(FrozenModel):
    """`[model]`: where the network and its pretrained weights come from."""

    factory: Reference = Field(description="`module:callable` that returns a torch.nn.Module.")
    args: Arguments = Field(default_factory=dict, description="Arguments of the factory.")
    checkpoint: str | None = Field(
        None,
        description="Pretrained weights: a path relative to the recipe, or `pkg://package/path`. "
        "`.safetensors`, or a PyTorch file that holds tensors only.",
    )


class DataConfig(FrozenModel):
    """`[data]`: where the samples come from."""

    factory: Reference = Field(description="`module:callable` that returns exporter.Splits.")
    args: Arguments = Field(default_factory=dict, description="Arguments of the factory.")


class TeacherConfig(FrozenModel):
    """Another network to learn from."""

    factory: Reference = Field(description="`module:callable` that returns a torch.nn.Module.")
    args: Arguments = Field(default_factory=dict, description="Arguments of the factory.")
    checkpoint: str = Field(description="Its weights: a path relative to the recipe, or `pkg://`.")


class OnnxTeacherConfig(FrozenModel):
    """A finished model to learn from, run by ONNX Runtime."""

    model: str = Field(
        description="An .onnx file, or another recipe's artifact, whose float model is taken; a path "
        "relative to the recipe, or `pkg://`."
    )


Teacher = Annotated[
    str | TeacherConfig | OnnxTeacherConfig,
    Field(description="The name of an earlier stage (or `pretrained`), another checkpoint, or a model."),
]
