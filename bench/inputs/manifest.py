"""The manifest of an artifact: its content, its origin, and how to use it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Final, Literal, Self, TypeAlias

from pydantic import Field, ValidationError, model_validator

from bench.core.errors import ArtifactError
from bench.core.schema import FrozenModel, Json, explain_validation
from bench.inputs.runtime import VERSION_PATTERN, RuntimeVersion
from bench.inputs.session import Signature, TensorSpec

MANIFEST = "manifest.json"

# History of the format. A reader refuses an unknown version.
# 1 (0.1.0): flat folder, SHA-256 of every file except the manifest.
# 2: adds the oldest ONNX Runtime that runs both models; the task, its labels and metrics; the signature and
#    the preprocessing of each input; licences. All of them may be absent.
SCHEMA_VERSION: Final = 2
MAX_MANIFEST_BYTES = 64 * 2**20
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")

Name: TypeAlias = Annotated[str, Field(min_length=1, max_length=200)]
Count: TypeAlias = Annotated[int, Field(ge=1, le=2**53)]
Channels: TypeAlias = Annotated[tuple[float, ...], Field(min_length=1, max_length=4096)]
Spreads: TypeAlias = Annotated[
    tuple[Annotated[float, Field(gt=0.0)], ...], Field(min_length=1, max_length=4096)
]


class FileEntry(FrozenModel):
    """Expected SHA-256 and size of a file of the artifact."""

    sha256: str
    size_bytes: int


class StageEntry(FrozenModel):
    """One step of the build.

    Attributes:
        name: name of the step.
        kind: kind of the step.
        key: hash of all inputs of the step.
        metrics: figures that the step measured.
    """

    name: str
    kind: str
    key: str
    metrics: Json


class TensorEntry(FrozenModel):
    """One input or output of a model.

    Attributes:
        name: name of the input or output.
        dtype: numpy's name of the type, for example "float32".
        shape: one entry per axis: its size, the name of a dynamic axis, or None for a dynamic axis without
            a name.
    """

    name: Name
    dtype: Name
    shape: Annotated[tuple[Annotated[int, Field(ge=0)] | Name | None, ...], Field(max_length=64)]

    @classmethod
    def of(cls, spec: TensorSpec) -> Self:
        """Build the entry of a session's input or output."""
        return cls(name=spec.name, dtype=spec.dtype, shape=spec.named_shape())


class SignatureEntry(FrozenModel):
    """Inputs and outputs of `model.onnx`, in the order of the model."""

    inputs: Annotated[tuple[TensorEntry, ...], Field(min_length=1, max_length=1024)]
    outputs: Annotated[tuple[TensorEntry, ...], Field(min_length=1, max_length=1024)]

    @classmethod
    def of(cls, signature: Signature) -> Self:
        """Build the entry of a session's signature."""
        return cls(
            inputs=tuple(TensorEntry.of(spec) for spec in signature.inputs),
            outputs=tuple(TensorEntry.of(spec) for spec in signature.outputs),
        )


class ImageInput(FrozenModel):
    """Conversion of pictures to an input: resize, crop or pad, then (byte - mean) / std.

    Attributes:
        input: name of the model's input.
        layout: order of the input's axes.
        mean, std: mean and standard deviation of bytes from 0 to 255; one number, or one per channel.
        in_graph: whether the model computes (byte - mean) / std itself; its input then takes bytes.
        channels: order of the colours; None if the build did not know it.
        size: [height, width] in pixels; None if the model accepts any size.
        resize: method to bring a picture of another shape to that size: stretch, crop in the middle, or
            pad.
        shorter_side: pixels of the shorter side after resizing and before the crop.
        interpolation: method to compute pixels when resizing.
        fill: value of the bytes to pad with.
    """

    kind: Literal["image"] = "image"
    input: Name
    layout: Literal["nhwc", "nchw"]
    mean: Channels
    std: Spreads
    in_graph: bool = False
    channels: Literal["rgb", "bgr", "gray"] | None = None
    size: tuple[Count, Count] | None = None
    resize: Literal["stretch", "crop", "pad"] | None = None
    shorter_side: Count | None = None
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] | None = None
    fill: Annotated[int, Field(ge=0, le=255)] | None = None


class TextInput(FrozenModel):
    """Conversion of a text to an input.

    Attributes:
        input: name of the model's input.
        content: output of the tokenizer that the input takes: token ids, attention mask, or segment ids.
        tokenizer: name of the artifact's file with the tokenizer.
        max_length: number of tokens after which a text is truncated.
        padding: length to which shorter texts are padded: the length of the longest text in the batch, or
            `max_length`.
        pad_id: id of the padding token.
    """

    kind: Literal["text"] = "text"
    input: Name
    content: Literal["ids", "mask", "segments"]
    tokenizer: Name | None = None
    max_length: Count | None = None
    padding: Literal["longest", "max_length"] | None = None
    pad_id: Annotated[int, Field(ge=0, le=2**53)] | None = None


class AudioInput(FrozenModel):
    """Conversion of sound to an input.

    Attributes:
        input: name of the model's input.
        sample_rate_hz: sampling rate to which a recording is resampled.
        features: the waveform itself, or the features that are computed from it.
        layout: the axis of the features that comes first.
        samples: length of a recording in samples; None if the model accepts any length.
        fft_samples, window_samples, hop_samples: sizes of the short-time Fourier transform.
        bins: number of features per frame: mel bands or coefficients.
        low_hz, high_hz: lower and upper frequency of the mel bands.
        mean, std: constants of (feature - mean) / std; one number, or one per bin.
    """

    kind: Literal["audio"] = "audio"
    input: Name
    sample_rate_hz: Count
    features: Literal["waveform", "spectrogram", "mel", "log_mel", "mfcc"]
    layout: Literal["time_first", "bins_first"] | None = None
    samples: Count | None = None
    fft_samples: Count | None = None
    window_samples: Count | None = None
    hop_samples: Count | None = None
    bins: Count | None = None
    low_hz: Annotated[float, Field(ge=0.0)] | None = None
    high_hz: Annotated[float, Field(gt=0.0)] | None = None
    mean: Channels | None = None
    std: Spreads | None = None


class TableInput(FrozenModel):
    """Conversion of the rows of a table to an input.

    Attributes:
        input: name of the model's input.
        columns: names of the columns, in the order of the input's last axis.
        categories: column name -> its possible values, for columns without numbers; the code of a value is
            its index.
        mean, std: constants of (value - mean) / std; one number, or one per column.
    """

    kind: Literal["table"] = "table"
    input: Name
    columns: Annotated[tuple[Name, ...], Field(min_length=1, max_length=65_536)]
    categories: Annotated[dict[Name, tuple[Name, ...]], Field(max_length=65_536)] | None = None
    mean: Channels | None = None
    std: Spreads | None = None


RawInput: TypeAlias = Annotated[
    ImageInput | TextInput | AudioInput | TableInput, Field(discriminator="kind")
]


class MetricEntry(FrozenModel):
    """One metric of the shipped model, and of its float baseline on the same samples.

    Attributes:
        value: the metric of `model.onnx`.
        baseline: the metric of `model.fp32.onnx`; None if it was not measured.
        direction: whether higher or lower values are better.
        split: name of the samples on which the metric was measured.
        samples: number of samples on which the metric was measured.
    """

    value: float
    baseline: float | None = None
    direction: Literal["higher", "lower"]
    split: Name
    samples: Count


class Manifest(FrozenModel):
    """Provenance of an artifact, and the information that a user of its model needs.

    An attribute is None if the build did not know it, or if the schema of the file does not have it.

    Attributes:
        schema_version: version of the format.
        name: name of the artifact.
        created_utc: time of the build.
        edgeproof: version of edgeproof that built the artifact.
        target: kind of CPU that the int8 model was made for.
        verdict: verdict of the build's gate.
        files: file name -> size and hash. The folder is flat, so names have no folders.
        stages: steps of the build, in order. The key of a step covers the keys of its parents.
        recipe: recipe of the build, with defaults.
        libraries: versions of all libraries that influenced the model.
        min_onnxruntime: the oldest ONNX Runtime that runs both models, for example "1.22".
        task: kind of task, for example "classification".
        labels: names of the classes, in the order of their indices.
        preprocessing: conversion of raw data to inputs, one entry per input. An input without an entry
            takes the raw values.
        metrics: name of a metric -> its values.
        licences: file or package -> SPDX identifier, or the text of a licence.
        signature: inputs and outputs of the model.
    """

    schema_version: Literal[1, 2] = SCHEMA_VERSION
    name: str
    created_utc: str
    edgeproof: str
    target: str
    verdict: str
    files: dict[str, FileEntry]
    stages: tuple[StageEntry, ...]
    recipe: Json
    libraries: dict[str, str]
    min_onnxruntime: Annotated[str, Field(pattern=rf"^{VERSION_PATTERN}$")] | None = None
    task: Name | None = None
    labels: Annotated[tuple[Name, ...], Field(min_length=1, max_length=100_000)] | None = None
    preprocessing: Annotated[tuple[RawInput, ...], Field(min_length=1, max_length=1024)] | None = None
    metrics: Annotated[dict[Name, MetricEntry], Field(max_length=1000)] | None = None
    licences: (
        Annotated[dict[Name, Annotated[str, Field(max_length=2**16)]], Field(max_length=10_000)] | None
    ) = None
    signature: SignatureEntry | None = None

    @model_validator(mode="after")
    def _inputs_are_known(self) -> Self:
        described = [entry.input for entry in self.preprocessing or ()]
        if len(set(described)) < len(described):
            raise ValueError("preprocessing names an input twice; describe each input once")
        known = None if self.signature is None else {entry.name for entry in self.signature.inputs}
        if known is not None and (unknown := sorted({*described} - known)):
            raise ValueError(
                f"preprocessing names {unknown[0]!r}, which is not an input of the model; "
                "use a name in signature.inputs"
            )
        return self

    @model_validator(mode="after")
    def _tokenizers_are_listed(self) -> Self:
        for entry in self.preprocessing or ():
            if isinstance(entry, TextInput) and entry.tokenizer not in (None, *self.files):
                raise ValueError(
                    f"files does not list the tokenizer {entry.tokenizer!r}; build the artifact again"
                )
        return self

    def runtime(self) -> RuntimeVersion | None:
        """Return the oldest ONNX Runtime that runs both models, or None if it is unknown."""
        return None if self.min_onnxruntime is None else RuntimeVersion.parse(self.min_onnxruntime)


def read_manifest(folder: Path) -> Manifest:
    """Read and validate the manifest of an artifact.

    Raises:
        ArtifactError: the manifest is missing, damaged, of an unknown schema, or names files outside the
            folder.
    """
    path = folder / MANIFEST
    try:
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise ArtifactError(
                path, f"is larger than {MAX_MANIFEST_BYTES} bytes", "copy the artifact again"
            )
        content = path.read_bytes()
    except OSError as error:
        raise ArtifactError(
            path, f"cannot be read ({error.strerror})", "pass an artifact folder or an .onnx"
        ) from error
    try:
        manifest = Manifest.model_validate_json(content)
    except ValidationError as error:
        place, cause, fix = explain_validation(error, Manifest)
        if place == "schema_version":
            fix = f"this version reads schemas 1 to {SCHEMA_VERSION}; install a newer edgeproof"
        raise ArtifactError(f"{path}: {place}", cause, fix) from error
    for name in manifest.files:
        if not _PLAIN_NAME.fullmatch(name):
            raise ArtifactError(
                path, f"names the file {name!r}, which is not a plain file name", "build the artifact again"
            )
    return manifest
