"""`[export]`: the conversion to ONNX."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from bench.core.schema import FrozenModel
from exporter.recipes.fields import Axis, Channels, Name, positive, refuse_without_effect


class PreprocessConfig(FrozenModel):
    """`[export.preprocess]`: the model takes images as uint8 and computes (value - mean) / std itself."""

    input: str | None = Field(
        None, description="Name of the input that holds the images; may be omitted if there is only one."
    )
    mean: Channels = Field(
        (127.0,),
        description="Mean to subtract, on the scale 0 to 255: one number, or one per channel.",
    )
    std: Annotated[Channels, AfterValidator(positive)] = Field(
        (128.0,),
        description="Standard deviation to divide by, on the scale 0 to 255: one number, or one per "
        "channel.",
    )
    layout: Literal["nhwc", "nchw"] = Field(
        "nhwc",
        description="Order of the axes of the uint8 input; cameras and image decoders deliver `nhwc`.",
    )


class PostprocessConfig(FrozenModel):
    """`[export.postprocess]`: the operation that the model applies to the class scores of the network."""

    kind: Literal["softmax", "argmax", "topk"] = Field(
        description="Output of the model. `softmax`: probabilities. `argmax`: index of the best class. "
        "`topk`: the k best classes with their scores."
    )
    k: int = Field(5, ge=1, le=100_000, description="Number of classes that `topk` returns.")

    @model_validator(mode="after")
    def _k_counts(self) -> PostprocessConfig:
        if self.kind != "topk":
            refuse_without_effect(self, ("k",), f"with {self.kind}")
        return self


class ExportConfig(FrozenModel):
    """`[export]`: the conversion to ONNX."""

    opset: int = Field(
        20,
        ge=18,
        le=23,
        description="Version of the ONNX operator set. The runtime on the device must support it; older "
        "runtimes support only lower versions.",
    )
    dynamic: dict[str, dict[Axis, Name]] = Field(
        default_factory=dict,
        description="Input axes of variable size, in addition to the batch axis: input name, axis number "
        '(from 1) and a name for the size, for example `{ input_ids = { 1 = "sequence" } }`. Axes with the '
        "same name have the same size.",
    )
    preprocess: PreprocessConfig | None = Field(
        None,
        description="If set, the model takes images as uint8 and normalises them itself. Off by default.",
    )
    postprocess: PostprocessConfig | None = Field(
        None,
        description="If set, the model returns probabilities or classes instead of scores. Off by default.",
    )
    min_sqnr_db: float = Field(
        50.0,
        ge=0.0,
        le=200.0,
        description="Minimum SQNR of the exported float model's outputs against PyTorch, in dB; the build "
        "fails below it.",
    )

    def network_alone(self) -> ExportConfig:
        """A copy without preprocessing and postprocessing: the model takes the data factory's arrays."""
        return self.model_copy(update={"preprocess": None, "postprocess": None})
