"""What quantizing found."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import JsonValue

from exporter.results.base import Figures, StepResult


class EqualizeFigures(Figures):
    """What equalization changed.

    Attributes:
        pairs: pairs of layers whose channels were scaled against each other.
        channels: channels that were scaled.
        channels_at_a_clip: channels that could not be scaled freely because a clip is between.
    """

    pairs: int
    channels: int
    channels_at_a_clip: int


class SmoothFigures(Figures):
    """What smoothing changed.

    Attributes:
        smoothed: activations that were scaled.
        folded: those whose factors went into a norm.
        product_noise_ratio: estimated noise of the products after, as a share of that before.
    """

    smoothed: int
    folded: int
    product_noise_ratio: float


class AdaRoundFigures(Figures):
    """What adaptive rounding changed.

    Attributes:
        layers: layers whose weights were rounded.
        flipped_share: share of the weights that are not rounded to the nearest.
        local_error_ratio: mean output error of a layer after, as a share of that of nearest rounding.
    """

    layers: int
    flipped_share: float
    local_error_ratio: float


class BiasFigures(Figures):
    """What bias correction changed.

    Attributes:
        layers: layers whose bias was corrected.
        largest_correction: largest change of a bias, in units of the layer's output.
    """

    layers: int
    largest_correction: float


RepairFigures = EqualizeFigures | SmoothFigures | AdaRoundFigures | BiasFigures


class RepairReport(Figures):
    """What a repair bought on held-out samples.

    Attributes:
        repair: its name.
        kept: whether it stays.
        reason: why it was not kept; empty if it was.
    """

    repair: str
    kept: bool
    reason: str
    sqnr_db_before: float
    sqnr_db_after: float
    agreement_before: float
    agreement_after: float

    def line(self) -> str:
        """The report in one line."""
        text = (
            f"{self.repair}: SQNR {self.sqnr_db_before:.1f} to {self.sqnr_db_after:.1f} dB, "
            f"agreement {self.agreement_before:.2%} to {self.agreement_after:.2%}"
        )
        return text if self.kept else f"{text}; not kept: {self.reason}"


class EqualizeReport(RepairReport, EqualizeFigures):
    """What `equalize` bought."""


class SmoothReport(RepairReport, SmoothFigures):
    """What `smooth` bought."""


class AdaRoundReport(RepairReport, AdaRoundFigures):
    """What `adaround` bought."""


class BiasReport(RepairReport, BiasFigures):
    """What `bias` bought."""


AnyRepairReport = EqualizeReport | SmoothReport | AdaRoundReport | BiasReport


class Score(Figures):
    """An int8 model on held-out samples.

    Attributes:
        sqnr_db: of its output against the float reference's.
        agreement: share of samples whose largest output is at the same index.
        drop: accuracy lost against the reference; without labels, the share of samples that disagree.
    """

    sqnr_db: float
    agreement: float
    drop: float


class FallbackCandidate(Figures):
    """Layers that could stay in float together.

    Attributes:
        layers: their names, in graph order: one, or all that touch a tensor.
        sqnr_db: of the model's output with them in float.
        cost_ns: time per run that leaving them in float costs; negative where int8 is the slower.
    """

    layers: tuple[str, ...]
    sqnr_db: float
    cost_ns: float


class FallbackReport(Figures):
    """Layers that were left in float so that a budget holds.

    Attributes:
        exclude: their names, in graph order.
        tried: how many configurations were scored.
        before: without any layer in float.
        after: with `exclude` in float.
        candidates: what was considered, with what it costs.
    """

    exclude: tuple[str, ...]
    tried: int
    before: Score
    after: Score
    candidates: tuple[FallbackCandidate, ...]


class QuantizedModel(Figures):
    """What was made of a float model.

    Attributes:
        target: the CPU kind that it was made for.
        tables: embedding tables that are stored in 8 bits.
        min_onnxruntime: the oldest ONNX Runtime that runs it.
    """

    target: str
    activation_type: str
    weight_type: str
    tables: int
    min_onnxruntime: str


class Int8Model(QuantizedModel):
    """Weights and activations in 8 bits.

    Attributes:
        per_channel: whether each output channel of weights has a scale of its own.
        reduced_channels: layer -> channels that have fewer levels, so that 16-bit sums do not overflow.
        method: how activation ranges were chosen.
        samples: calibration samples.
        learned_ranges: activation ranges that were trained.
        stem_on_blocks: whether the first convolution runs on blocks of pixels.
        held_out_samples: samples that judged repairs; None where nothing was asked to be repaired.
        repairs: what each repair bought.
        fallback: layers left in float; None where no budget was given.
    """

    bits: Literal[8]
    per_channel: bool
    reduced_channels: dict[str, int]
    method: str
    samples: int
    learned_ranges: int
    stem_on_blocks: bool
    quantize_nodes: int
    dequantize_nodes: int
    held_out_samples: int | None = None
    repairs: tuple[AnyRepairReport, ...] | None = None
    fallback: FallbackReport | None = None


class Int4Model(QuantizedModel):
    """Weights of products in 4 bits; activations stay in float.

    Attributes:
        block_size: weights that share a scale.
        products: products whose weights have 4 bits.
    """

    bits: Literal[4]
    block_size: int
    products: int


class QuantizedFile(Figures):
    """What quantizing a finished model gave.

    Attributes:
        model: the file that was written.
        sha256: of it, with weights beside it.
        size_bytes: with weights beside it.
        made: what is in it.
        seconds: from the start until it was written.
        peak_rss_bytes: of this process; None where the system does not tell.
    """

    model: Path
    sha256: str
    size_bytes: int
    made: Int8Model | Int4Model
    seconds: float
    peak_rss_bytes: int | None

    def as_json(self) -> dict[str, JsonValue]:
        """What `quantize --json` prints: all in one object."""
        return {
            "model": str(self.model),
            "sha256": self.sha256,
            "size_bytes": self.size_bytes,
            **self.made.as_json(),
            "seconds": self.seconds,
            "peak_rss_bytes": self.peak_rss_bytes,
        }


class Written(Figures):
    """The file that the step wrote.

    Attributes:
        size_bytes: with weights beside it.
        compressed_bytes: under zlib.
    """

    size_bytes: int
    compressed_bytes: int


class Int8Result(StepResult, Int8Model, Written):
    """What `quantize` found, in 8 bits."""

    kind: ClassVar[str] = "quantize"

    def headline(self) -> tuple[str, ...]:
        """The target."""
        return (f"for {self.target}",)


class Int4Result(StepResult, Int4Model, Written):
    """What `quantize` found, in 4 bits."""

    kind: ClassVar[str] = "quantize"

    def headline(self) -> tuple[str, ...]:
        """The target."""
        return (f"for {self.target}",)
