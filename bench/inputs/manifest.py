"""The manifest of an artifact: what it is, where it comes from, and how to use it."""

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

# History of the format. A reader refuses a version it does not know.
# 1 (0.1.0): flat folder, SHA-256 of every file but the manifest.
# 2: the oldest ONNX Runtime that runs both models; the task, its labels and metrics; what each input takes
#    and how raw data become that; licences. All may be absent.
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
    """What a file of the artifact must be."""

    sha256: str
    size_bytes: int


class StageEntry(FrozenModel):
    """One step of the build: what it was, the hash of all that went in, what it measured."""

    name: str
    kind: str
    key: str
    metrics: Json


class TensorEntry(FrozenModel):
    """One input or output of a model.

    Attributes:
        dtype: numpy's name of the type, such as "float32".
        shape: each axis is a size, the name of an open one, or None for an open axis without a name.
    """

    name: Name
    dtype: Name
    shape: Annotated[tuple[Annotated[int, Field(ge=0)] | Name | None, ...], Field(max_length=64)]

    @classmethod
    def of(cls, spec: TensorSpec) -> Self:
        """The entry of a session's input or output."""
        return cls(name=spec.name, dtype=spec.dtype, shape=spec.named_shape())


class SignatureEntry(FrozenModel):
    """What `model.onnx` takes and gives, in its own order."""

    inputs: Annotated[tuple[TensorEntry, ...], Field(min_length=1, max_length=1024)]
    outputs: Annotated[tuple[TensorEntry, ...], Field(min_length=1, max_length=1024)]

    @classmethod
    def of(cls, signature: Signature) -> Self:
        """The entry of a session's signature."""
        return cls(
            inputs=tuple(TensorEntry.of(spec) for spec in signature.inputs),
            outputs=tuple(TensorEntry.of(spec) for spec in signature.outputs),
        )


class ImageInput(FrozenModel):
    """How pictures become an input: resize, crop or pad, then (byte - mean) / std.

    Attributes:
        input: the model's input.
        layout: the order of the input's axes.
        mean, std: of bytes from 0 to 255; one number, or one per channel.
        in_graph: whether the model computes (byte - mean) / std itself: then its input takes bytes.
        channels: the order of the colours; None where the build did not know.
        size: [height, width] in pixels; None where any size will do.
        resize: how a picture of another shape gets that size: stretched, cropped in the middle, or padded.
        shorter_side: pixels of the shorter side after resizing, before the crop.
        interpolation: how pixels are computed while resizing.
        fill: the byte to pad with.
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
    """How a text becomes an input.

    Attributes:
        input: the model's input.
        content: what of the tokenizer's output it takes: token ids, the mask of attention, or the ids of
            segments.
        tokenizer: the file of the artifact that holds the tokenizer.
        max_length: tokens at which a text is cut.
        padding: to what length shorter texts are padded: the longest of a batch, or `max_length`.
        pad_id: the token to pad with.
    """

    kind: Literal["text"] = "text"
    input: Name
    content: Literal["ids", "mask", "segments"]
    tokenizer: Name | None = None
    max_length: Count | None = None
    padding: Literal["longest", "max_length"] | None = None
    pad_id: Annotated[int, Field(ge=0, le=2**53)] | None = None


class AudioInput(FrozenModel):
    """How sound becomes an input.

    Attributes:
        input: the model's input.
        sample_rate_hz: what a recording is resampled to.
        features: the waveform itself, or what is computed from it.
        layout: which axis of the features comes first.
        samples: the length of a recording; None where any length will do.
        fft_samples, window_samples, hop_samples: of the short-time Fourier transform.
        bins: features per frame: mel bands or coefficients.
        low_hz, high_hz: the limits of the mel bands.
        mean, std: (feature - mean) / std; one number, or one per bin.
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
    """How rows of a table become an input.

    Attributes:
        input: the model's input.
        columns: their names, in the order of the input's last axis.
        categories: the values of columns that hold no numbers, in the order of their codes from 0.
        mean, std: (value - mean) / std; one number, or one per column.
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
    """What was measured of the model that ships, and of its baseline on the same samples.

    Attributes:
        value: of `model.onnx`.
        baseline: of `model.fp32.onnx`; None where it was not measured.
        direction: which values are better.
        split: the samples that it was measured on.
        samples: how many there were.
    """

    value: float
    baseline: float | None = None
    direction: Literal["higher", "lower"]
    split: Name
    samples: Count


class Manifest(FrozenModel):
    """Provenance of an artifact, and what a user of its model has to know.

    Attributes:
        target: the kind of CPU that the int8 model was made for.
        verdict: what the gate of the build said.
        files: file name -> size and hash; names are plain, the folder is flat.
        stages: the steps that led here, in order; each key covers its parents'.
        recipe: the recipe as it was built, defaults included.
        libraries: versions of everything that shaped the model.
        min_onnxruntime: the oldest ONNX Runtime that runs both models, such as "1.22".
        task: the kind of task, such as "classification".
        labels: the names of the classes, in the order of their indices.
        preprocessing: how raw data become the inputs, one entry an input; inputs without one take values
            as they are.
        metrics: name -> what was measured.
        licences: file or package -> SPDX identifier, or the text of a licence.
        signature: what the model takes and gives.

    What the build did not know, and what an earlier schema did not tell, is None.
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
            raise ValueError("preprocessing names an input twice; describe each once")
        known = None if self.signature is None else {entry.name for entry in self.signature.inputs}
        if known is not None and (unknown := sorted({*described} - known)):
            raise ValueError(f"preprocessing names {unknown[0]!r}, which is no input; see signature.inputs")
        return self

    @model_validator(mode="after")
    def _tokenizers_are_listed(self) -> Self:
        for entry in self.preprocessing or ():
            if isinstance(entry, TextInput) and entry.tokenizer not in (None, *self.files):
                raise ValueError(f"files does not list the tokenizer {entry.tokenizer!r}; build it again")
        return self

    def runtime(self) -> RuntimeVersion | None:
        """The oldest ONNX Runtime that runs both models, or None."""
        return None if self.min_onnxruntime is None else RuntimeVersion.parse(self.min_onnxruntime)


def read_manifest(folder: Path) -> Manifest:
    """Read and validate the manifest of an artifact.

    Raises:
        ArtifactError: it is missing, damaged, of an unknown schema, or names files outside the folder.
    """
    path = folder / MANIFEST
    try:
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise ArtifactError(path, "is larger than a manifest can be", "copy the artifact again")
        content = path.read_bytes()
    except OSError as error:
        raise ArtifactError(
            path, f"cannot be read ({error.strerror})", "name an artifact folder or an .onnx"
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
            raise ArtifactError(path, f"names the file {name!r}", "artifact files have plain names")
    return manifest
