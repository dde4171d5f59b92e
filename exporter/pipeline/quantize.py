"""The function `exporter.quantize`, which the command `edgeproof quantize` calls."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from bench.core.errors import UsageError
from bench.core.files import AnyPath
from bench.core.progress import SILENT, Progress
from exporter.extras import require, require_tested
from exporter.options import BlockSize, CalibrationMethod, Goal, TargetName
from exporter.results import QuantizedFile

if TYPE_CHECKING:
    from exporter.graphs.pins import Pin


def quantize(
    model: AnyPath,
    out: AnyPath,
    *,
    data: AnyPath | None = None,
    bits: int = 8,
    block_size: int = 32,
    target: TargetName = "auto",
    onnxruntime: str | None = None,
    method: CalibrationMethod = "minmax",
    exclude: Sequence[str] = (),
    cache: AnyPath | None = None,
    repair: Sequence[str] = (),
    max_drop: float | None = None,
    pin: Sequence[str] = (),
    goal: Goal = "speed",
    progress: Progress = SILENT,
) -> QuantizedFile:
    """Quantize a float model without a recipe: statically to int8, or only its weights to 4 bits.

    Args:
        model: a float `.onnx` file, or a `.pt2` program, which needs torch.
        out: the `.onnx` file to write.
        data: calibration samples, an `.npz` with one array [N, ...] per model input; required for 8 bits.
        bits: 8 quantizes weights and activations; 4 quantizes only weights of matrix products, in blocks.
        block_size: with 4 bits, the number of weights that share a scale.
        target: the kind of CPU that the model will run on; `auto` is this CPU.
        onnxruntime: versions that must run the model, for example `>=1.24`; by default all supported ones.
        method: method that chooses the activation ranges.
        exclude: nodes of the given file to keep in float, by name, module or pattern with `*`.
        cache: folder in which activation ranges are stored and reused; None stores nothing.
        repair: names of accuracy repairs, in order; each is kept only if it helps on held-out samples.
        max_drop: largest accuracy loss on held-out samples, 0 to below 1; layers stay in float to meet it.
        pin: sizes of open axes, as `name=size` or `input:number=size`; the result has these fixed sizes.
        goal: with `speed`, no file if int8 is proven slower than float, unless float takes under 50 us.
        progress: receives a message for every batch.

    Raises:
        MissingExtraError: the extra `export` is not installed.
        UsageError: `out` is an input file, an option has an unknown value, the model has no open axis that
            `pin` names, or options exclude each other.
        ModelError: the model cannot be loaded or quantized.
        DataError: the samples are invalid, or do not fit the model.
        ExportError: an excluded node does not exist, or no configuration meets `max_drop`.
        SlowerError: int8 is slower than float, and the goal is speed.

    Examples:
        >>> import exporter
        >>> written = exporter.quantize("model.onnx", "int8.onnx", data="evaluation.npz", target="portable")
        >>> written.model.name, written.made.samples, written.made.method
        ('int8.onnx', 104, 'minmax')
    """
    _check_installed()
    _check_choice("--target", target, get_args(TargetName))
    _check_choice("--method", method, get_args(CalibrationMethod))
    _check_choice("--goal", goal, get_args(Goal))
    pins = _read_pins(pin)
    if bits == 4:
        _check_weights_alone(block_size, data=data, cache=cache, repair=repair, max_drop=max_drop)
        from exporter.pipeline.quantize_file import quantize_weights_file

        return quantize_weights_file(
            Path(model),
            Path(out),
            target=target,
            block_size=block_size,
            exclude=tuple(exclude),
            onnxruntime=onnxruntime,
            pins=pins,
        )
    samples = _check_activations(bits, data, max_drop)
    from exporter.pipeline.quantize_file import quantize_file
    from exporter.quantization.int8_repaired import RepairSettings, check_repairs
    from exporter.recipes import FallbackConfig

    fallback = None if max_drop is None else FallbackConfig(max_drop=max_drop)
    return quantize_file(
        Path(model),
        samples,
        Path(out),
        target=target,
        method=method,
        exclude=tuple(exclude),
        cache=None if cache is None else Path(cache),
        repairs=RepairSettings(check_repairs(repair), fallback),
        goal=goal,
        onnxruntime=onnxruntime,
        pins=pins,
        progress=progress,
    )


def _check_installed() -> None:
    for module in ("onnx", "onnx_ir", "onnxscript"):
        require(module, "export")
    require_tested("onnxruntime")


def _read_pins(stated: Sequence[str]) -> tuple[Pin, ...]:
    from exporter.graphs.pins import read_pins

    return read_pins(stated)


def _check_choice(option: str, chosen: str, known: tuple[str, ...]) -> None:
    if chosen not in known:
        raise UsageError(option, f"{chosen!r} is unknown", f"choose one of: {', '.join(known)}")


def _check_activations(bits: int, data: AnyPath | None, max_drop: float | None) -> Path:
    """The file of calibration samples, after a check of the options for 8 bits."""
    if bits != 8:
        raise UsageError("--bits", f"{bits} bits are not supported", "choose 8 or 4")
    if data is None:
        raise UsageError(
            "--data",
            "is missing, but 8 bits need calibration samples",
            "name an .npz with a few hundred samples",
        )
    if max_drop is not None and not 0 <= max_drop < 1:
        raise UsageError("--max-drop", f"{max_drop:g} is out of range", "choose from 0 to below 1")
    return Path(data)


def _check_weights_alone(block_size: int, **options: object) -> None:
    """Refuse options that have no effect if only weights are quantized."""
    for name, value in options.items():
        if value:
            option = f"--{name.replace('_', '-')}"
            raise UsageError(
                option,
                "has no effect with 4 bits, because activations stay in float",
                f"leave {option} out",
            )
    if block_size not in get_args(BlockSize):
        raise UsageError(
            "--block-size", f"{block_size} is not a valid block size", "choose 16, 32, 64, 128 or 256"
        )
