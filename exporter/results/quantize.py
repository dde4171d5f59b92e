"""Results of quantization."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import JsonValue

from exporter.results.base import Figures, StepResult
from exporter.results.fidelity import Fidelity
from exporter.results.speed import Speed


class EqualizeFigures(Figures):
    """Figures of cross-layer equalization.

    Attributes:
        pairs: number of pairs of layers whose channels were scaled against each other.
        channels: number of channels that were scaled.
        channels_at_a_clip: number of channels whose scaling was limited by a Clip between the layers.
    """

    pairs: int
    channels: int
    channels_at_a_clip: int


class SmoothFigures(Figures):
    """Figures of smoothing.

    Attributes:
        smoothed: number of activations that were scaled.
        folded: number of scaled activations whose factors were folded into a norm.
        product_noise_ratio: estimated quantization noise of the matrix products after smoothing, divided by
            the noise before.
    """

    smoothed: int
    folded: int
    product_noise_ratio: float


class AdaRoundFigures(Figures):
    """Figures of adaptive rounding (AdaRound).

    Attributes:
        layers: number of layers whose weights were rounded adaptively.
        flipped_share: fraction of the weights that are not rounded to the nearest value.
        local_error_ratio: mean output error of a layer, divided by the error with rounding to the nearest
            value.
    """

    layers: int
    flipped_share: float
    local_error_ratio: float


class BiasFigures(Figures):
    """Figures of bias correction.

    Attributes:
        layers: number of layers whose bias was corrected.
        largest_correction: largest change of a bias, in units of the layer's output.
    """

    layers: int
    largest_correction: float


RepairFigures = EqualizeFigures | SmoothFigures | AdaRoundFigures | BiasFigures


class RepairReport(Figures):
    """The effect of a repair, measured on held-out samples against the float model.

    Attributes:
        repair: name of the repair.
        kept: whether the repair is part of the int8 model.
        reason: why the repair was not kept; empty if it was kept.
        sqnr_db_before: SQNR of the output without the repair, in dB.
        sqnr_db_after: SQNR of the output with the repair, in dB.
        agreement_before: fraction of samples with equal predictions, without the repair.
        agreement_after: fraction of samples with equal predictions, with the repair.
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
    """The effect and figures of `equalize`."""


class SmoothReport(RepairReport, SmoothFigures):
    """The effect and figures of `smooth`."""


class AdaRoundReport(RepairReport, AdaRoundFigures):
    """The effect and figures of `adaround`."""


class BiasReport(RepairReport, BiasFigures):
    """The effect and figures of `bias`."""


AnyRepairReport = EqualizeReport | SmoothReport | AdaRoundReport | BiasReport


class Score(Figures):
    """Scores of an int8 model on held-out samples, against the float model.

    Attributes:
        sqnr_db: SQNR of the int8 output against the float output, in dB.
        agreement: fraction of samples whose largest output is at the same index.
        drop: float accuracy minus int8 accuracy; without labels, the fraction of samples with different
            predictions.
    """

    sqnr_db: float
    agreement: float
    drop: float


class FallbackCandidate(Figures):
    """Layers that could stay in float together.

    Attributes:
        layers: names in graph order: a single layer, or all layers that touch a tensor.
        sqnr_db: SQNR of the model's output with these layers in float, in dB.
        cost_ns: additional time per run with these layers in float, in ns; negative if they are
            slower in int8.
    """

    layers: tuple[str, ...]
    sqnr_db: float
    cost_ns: float


class FallbackReport(Figures):
    """Result of the fallback search: the layers that stay in float to meet the limits of the recipe.

    Attributes:
        exclude: names of the layers that stay in float, in graph order.
        tried: number of configurations that were scored.
        before: scores with all layers in int8.
        after: scores with the layers of `exclude` in float.
        candidates: groups of layers that were considered, with the cost of each.
    """

    exclude: tuple[str, ...]
    tried: int
    before: Score
    after: Score
    candidates: tuple[FallbackCandidate, ...]


class QuantizedModel(Figures):
    """Properties of a quantized model.

    Attributes:
        target: the kind of CPU that the model was quantized for.
        activation_type: number type of quantized activations.
        weight_type: number type of quantized weights.
        tables: number of embedding tables that are stored in 8 bits.
        min_onnxruntime: the oldest version of ONNX Runtime that runs the model.
    """

    target: str
    activation_type: str
    weight_type: str
    tables: int
    min_onnxruntime: str


class Int8Model(QuantizedModel):
    """Properties of a model with weights and activations in 8 bits.

    Attributes:
        per_channel: whether each output channel of a weight has its own scale.
        reduced_channels: layer name -> number of channels with fewer levels, so that 16-bit sums do not
            overflow.
        method: method that chose the activation ranges.
        samples: number of calibration samples.
        learned_ranges: number of activation ranges that were trained.
        stem_on_blocks: whether the first convolution runs on blocks of pixels.
        quantize_nodes: number of QuantizeLinear nodes.
        dequantize_nodes: number of DequantizeLinear nodes.
        held_out_samples: number of samples that repairs and fallback were scored on; None if neither was
            requested.
        repairs: the effect of each repair.
        fallback: result of the fallback search; None if no fallback was requested.
        fidelity: closeness to the float model on few samples; None if there were none.
        pays: whether int8 is faster than float on this CPU: `int8`; `mixed` if operators stay in float;
            `float` if the model is slower; None if it was not timed, because it is for another kind of CPU.
        speed: the measured times; None if the model was not timed.
        in_float: operators with multiply-adds that stay in float, and nodes that were faster there ->
            reason; None if the model was not timed.
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
    fidelity: Fidelity | None = None
    pays: Literal["int8", "mixed", "float"] | None = None
    speed: Speed | None = None
    in_float: dict[str, str] | None = None

    def left_out(self) -> set[str]:
        """Names of fields that are not written; `pays` is always written."""
        return super().left_out() - {"pays"}

    def speed_text(self) -> str:
        """The verdict on the speed in one line."""
        if self.speed is None:
            return f"not timed: made for {self.target}, which this CPU is not"
        names: dict[str, list[str]] = {}
        for name, reason in (self.in_float or {}).items():
            names.setdefault(reason, []).append(name)
        groups = [f"{_few(found)} ({reason})" for reason, found in names.items()]
        kept = f"; in float: {_few(groups)}" if groups else ""
        return f"pays: {self.pays}: the model {self.speed.text()}{kept}"


def _few(names: list[str], most: int = 3) -> str:
    """The first names, and the number of the others."""
    return ", ".join([*names[:most], *([f"{len(names) - most} more"] if len(names) > most else [])])


class Int4Model(QuantizedModel):
    """Properties of a model whose matrix products have weights in 4 bits; activations stay in float.

    Attributes:
        block_size: number of weights that share a scale.
        products: number of matrix products whose weights have 4 bits.
    """

    bits: Literal[4]
    block_size: int
    products: int


class QuantizedFile(Figures):
    """Result of quantizing a float model without a recipe.

    Attributes:
        model: path of the file that was written.
        sha256: SHA-256 hash of that file and its external weights.
        size_bytes: size of that file with its external weights.
        made: properties of the quantized model.
        seconds: time from the start until the file was written.
        peak_rss_bytes: peak memory of this process; None if the system does not report it.
        warnings: problems of the samples and the float model, one line each.
    """

    model: Path
    sha256: str
    size_bytes: int
    made: Int8Model | Int4Model
    seconds: float
    peak_rss_bytes: int | None
    warnings: tuple[str, ...] = ()

    def as_json(self) -> dict[str, JsonValue]:
        """The object that `quantize --json` prints; the properties of the model are merged into it."""
        return {
            "model": str(self.model),
            "sha256": self.sha256,
            "size_bytes": self.size_bytes,
            **self.made.as_json(),
            "seconds": self.seconds,
            "peak_rss_bytes": self.peak_rss_bytes,
            **({"warnings": list(self.warnings)} if self.warnings else {}),
        }


class Written(Figures):
    """Size of the file that the step wrote.

    Attributes:
        size_bytes: size of the file with its external weights.
        compressed_bytes: size after compression with zlib.
    """

    size_bytes: int
    compressed_bytes: int


class Int8Result(StepResult, Int8Model, Written):
    """Result of the step `quantize` with 8 bits."""

    kind: ClassVar[str] = "quantize"

    def headline(self) -> tuple[str, ...]:
        """The target."""
        return (f"for {self.target}",)


class Int4Result(StepResult, Int4Model, Written):
    """Result of the step `quantize` with 4 bits."""

    kind: ClassVar[str] = "quantize"

    def headline(self) -> tuple[str, ...]:
        """The target."""
        return (f"for {self.target}",)
