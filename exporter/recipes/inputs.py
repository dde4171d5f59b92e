"""`[model]`, `[data]` and teachers: sources of networks, weights and samples."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from bench.core.schema import FrozenModel
from exporter.recipes.fields import Arguments, Reference


class ModelConfig(FrozenModel):
    """`[model]`: the source of the network and of its pretrained weights."""

    factory: Reference = Field(description="`module:callable` that returns a torch.nn.Module.")
    args: Arguments = Field(default_factory=dict, description="Keyword arguments of the factory.")
    checkpoint: str | None = Field(
        None,
        description="File with pretrained weights: a path relative to the recipe, or `pkg://package/path`. "
        "Either `.safetensors`, or a PyTorch file that contains only tensors. Without a checkpoint, "
        "training starts from random weights.",
    )


class DataConfig(FrozenModel):
    """`[data]`: the source of the samples."""

    factory: Reference = Field(description="`module:callable` that returns exporter.Splits.")
    args: Arguments = Field(default_factory=dict, description="Keyword arguments of the factory.")


class TeacherConfig(FrozenModel):
    """A PyTorch network as a teacher."""

    factory: Reference = Field(description="`module:callable` that returns a torch.nn.Module.")
    args: Arguments = Field(default_factory=dict, description="Keyword arguments of the factory.")
    checkpoint: str = Field(
        description="File with the teacher's weights: a path relative to the recipe, or "
        "`pkg://package/path`."
    )


class OnnxTeacherConfig(FrozenModel):
    """An ONNX model as a teacher; ONNX Runtime runs it."""

    model: str = Field(
        description="An .onnx file, or an artifact folder, whose float model is used: a path relative to "
        "the recipe, or `pkg://package/path`."
    )


Teacher = Annotated[
    str | TeacherConfig | OnnxTeacherConfig,
    Field(
        description="The teacher: the name of an earlier stage, `pretrained`, a table with `factory` and "
        "`checkpoint`, or a table with `model`."
    ),
]
