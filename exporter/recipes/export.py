"""`[export]`: the way to ONNX."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from bench.core.schema import FrozenModel
from exporter.recipes.fields import Axis, Channels, Name, positive, refuse_without_effect


class PreprocessConfig(FrozenModel):
    """`[export.preprocess]`: pictures enter the graph as bytes; it makes (byte - mean) / std of them."""

    input: str | None = Field(None, description="The input that holds pictures; by default the only one.")
    mean: Channels = Field((127.0,), description="Of 0 to 255; one number, or one per channel.")
    std: Annotated[Channels, AfterValidator(positive)] = Field(
        (128.0,), description="Of 0 to 255; one number, or one per channel."
    )
    layout: Literal["nhwc", "nchw"] = Field(
        "nhwc", description="Order of the axes of the bytes; cameras and decoders give `nhwc`."
    )


class PostprocessConfig(FrozenModel):
    """`[export.postprocess]`: what the graph makes of the network's class scores."""

    kind: Literal["softmax", "argmax", "topk"] = Field(
        description="`softmax`: probabilities; `argmax`: the class; `topk`: the k best classes and scores."
    )
    k: int = Field(5, ge=1, le=100_000, description="How many classes `topk` gives.")

    @model_validator(mode="after")
    def _k_counts(self) -> PostprocessConfig:
        if self.kind != "topk":
            refuse_without_effect(self, ("k",), f"with {self.kind}")
        return self


class ExportConfig(FrozenModel):
    """`[export]`: the way to ONNX."""

    opset: int = Field(
        20,
        ge=18,
        le=23,
        description="ONNX opset; the device's runtime must know it, and an old one knows only low numbers.",
    )
    dynamic: dict[str, dict[Axis, Name]] = Field(
        default_factory=dict,
        description="Axes whose size the model leaves open, besides the batch: input, axis (from 1) and a "
        'name for the size, as in `{ input_ids = { 1 = "sequence" } }`. Equal names are equal sizes.',
    )
    preprocess: PreprocessConfig | None = Field(
        None, description="Take pictures as bytes; the graph normalises them. Off by default."
    )
    postprocess: PostprocessConfig | None = Field(
        None, description="Give probabilities or classes instead of scores. Off by default."
    )
    min_sqnr_db: float = Field(
        50.0, ge=0.0, le=200.0, description="Parity of torch and ONNX below which the build stops."
    )

    def network_alone(self) -> ExportConfig:
        """The same, with nothing done before and after the network: it takes what the data hold."""
        return self.model_copy(update={"preprocess": None, "postprocess": None})
