"""Open an .onnx with ONNX Runtime on the CPU, and check feeds; every error states a fix."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from bench.core.arrays import Array, ArraySpec
from bench.core.errors import DataError, ModelError
from bench.inputs.runtime_words import external_failure, plain_words

if TYPE_CHECKING:
    import onnxruntime

_NUMPY_TYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(uint8)": "uint8",
    "tensor(int8)": "int8",
    "tensor(uint16)": "uint16",
    "tensor(int16)": "int16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(uint32)": "uint32",
    "tensor(uint64)": "uint64",
    "tensor(bool)": "bool",
}
# ONNX Runtime's severity scale. Its errors are raised as exceptions with the same words, and a second line
# in its log would repeat them.
FATAL_ONLY = 4


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a model.

    Attributes:
        name: name of the input or output.
        dtype: numpy's name of the type, or ONNX Runtime's name if numpy does not have the type.
        shape: one entry per axis: its size, or None for a dynamic axis.
        axes: index -> name, for the dynamic axes that have a name.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]
    axes: Mapping[int, str] = field(default_factory=dict, compare=False)

    @property
    def is_numeric(self) -> bool:
        """Whether the element type is a numeric or boolean type that numpy supports."""
        return self.dtype in _NUMPY_TYPES.values()

    def named_shape(self) -> tuple[int | str | None, ...]:
        """Return the shape; a dynamic axis that has a name is replaced by its name."""
        return tuple(self.axes.get(axis, size) for axis, size in enumerate(self.shape))


@dataclass(frozen=True)
class Signature:
    """Inputs and outputs of a model."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class RuntimeOptions:
    """The session options that influence a measurement.

    Attributes:
        threads: number of intra-op threads.
        arena: whether the memory arena is enabled.
        exact_sums: whether to prevent saturation of int8 sums on any CPU. Use it to get correct outputs,
            not to measure times.
    """

    threads: int = 1
    arena: bool = True
    exact_sums: bool = False


def open_session(path: Path, options: RuntimeOptions = RuntimeOptions()) -> onnxruntime.InferenceSession:
    """Load a model on the CPU with all graph optimizations.

    Raises:
        ModelError: the file is missing or damaged, or needs a feature that this ONNX Runtime lacks.
    """
    import onnxruntime

    if not path.is_file():
        raise ModelError(path, "there is no such file", "check the path")

    def settings() -> onnxruntime.SessionOptions:
        made = onnxruntime.SessionOptions()
        made.intra_op_num_threads = options.threads
        made.inter_op_num_threads = 1
        made.enable_cpu_mem_arena = options.arena
        made.log_severity_level = FATAL_ONLY
        return made

    def open_with(chosen: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
        return onnxruntime.InferenceSession(str(path), chosen, providers=["CPUExecutionProvider"])

    try:
        return exact_session(open_with, settings) if options.exact_sums else open_with(settings())
    except Exception as error:  # ONNX Runtime's exceptions have no common base class
        raise model_error(path, error) from error


def exact_session(
    open_with: Callable[[onnxruntime.SessionOptions], onnxruntime.InferenceSession],
    settings: Callable[[], onnxruntime.SessionOptions],
) -> onnxruntime.InferenceSession:
    """Open a session in which no sum of int8 products saturates; outputs are bit-identical to VNNI's.

    On x86 without VNNI, the kernels add products in 16 bits, which can overflow. The kernels for unsigned
    weights add in 32 bits, but ONNX Runtime (1.32) cannot load a model with them if several nodes share
    weights. That model then runs in float between its quantization nodes. The sums are the same, but a
    value close to a rounding boundary is occasionally rounded to the other side.

    Args:
        open_with: function that opens the model with the given options.
        settings: function that creates the session's options; this function adds entries to them.
    """
    from bench.inputs.host import fingerprint, host_target  # processes that only measure do not need it

    chosen = settings()
    if host_target(fingerprint()) != "x86-avx2":
        return open_with(chosen)
    chosen.add_session_config_entry("session.x64quantprecision", "1")
    with suppress(Exception):  # an error of the model itself is raised by the next attempt as well
        return open_with(chosen)
    chosen = settings()
    chosen.add_session_config_entry("session.disable_quant_qdq", "1")
    return open_with(chosen)


def model_error(path: Path, error: Exception) -> ModelError:
    """Convert ONNX Runtime's message about a model that does not load into a `ModelError`."""
    words = str(error)
    lowered = words.lower()
    if (newer := _too_new(words)) is not None:
        return ModelError(path, *newer)
    if (external := external_failure(words)) is not None:
        return ModelError(path, *external)
    words = plain_words(words)
    if "OrtValue indexes should have been populated" in words:
        return ModelError(path, "computes nothing: its graph is empty", "export the network again")
    if "external" in lowered and ("data" in lowered or "initializer" in lowered):
        return ModelError(
            path,
            f"its external data cannot be read ({words})",
            "put the data file back next to the model",
        )
    if "protobuf" in lowered or "modelproto" in lowered:
        return ModelError(path, "is truncated or not an ONNX model", "copy or export it again")
    return ModelError(path, f"ONNX Runtime cannot load it ({words})", "export it again")


def _too_new(words: str) -> tuple[str, str] | None:
    """Return cause and fix if ONNX Runtime lacks a feature of the model; None for other messages."""
    lowered = words.lower()
    if "opset" in lowered and ("under development" in lowered or "till opset" in lowered):
        opset = re.search(r"opset (\d+)", words, re.IGNORECASE)
        wanted = f"opset {opset.group(1)}" if opset else "an opset"
        return (
            f"needs {wanted}, which this ONNX Runtime does not support",
            "export with a lower opset or install a newer onnxruntime",
        )
    if kernel := re.search(r"Could not find an implementation for (\w+)\(\d+\)", words):
        return (
            f"uses {kernel.group(1)} with types for which this ONNX Runtime has no CPU kernel",
            "install a newer onnxruntime, or export it without that operator",
        )
    unknown = re.search(r"(\S+:\w+)\(-?\d+\) is not a registered function/op", words) or re.search(
        r"No Op registered for (\w+) with domain_version", words
    )
    if unknown:
        return (
            f"uses the operator {unknown.group(1)}, which this ONNX Runtime does not know",
            "export it with standard ONNX operators",
        )
    if "ir version" in lowered or "ir_version" in lowered:
        return (
            "its IR version is newer than this ONNX Runtime",
            "export with an older onnx or install a newer onnxruntime",
        )
    return None


def signature_of(session: onnxruntime.InferenceSession) -> Signature:
    """Return the names, types and shapes of a session's inputs and outputs."""
    return Signature(
        tuple(_spec(node) for node in session.get_inputs()),
        tuple(_spec(node) for node in session.get_outputs()),
    )


def check_feeds(place: object, signature: Signature, feeds: Mapping[str, Array | ArraySpec]) -> None:
    """Check that `feeds` fit a model.

    Raises:
        DataError: a feed is missing, unknown, or has another dtype or shape than the model expects.
    """
    wanted = {spec.name: spec for spec in signature.inputs}
    if missing := sorted(wanted.keys() - feeds.keys()):
        raise DataError(place, f"lacks the model's input {missing[0]!r}", f"use the names {sorted(wanted)}")
    if unknown := sorted(feeds.keys() - wanted.keys()):
        raise DataError(
            place, f"{unknown[0]!r} is not an input of the model", f"use the names {sorted(wanted)}"
        )
    for name, spec in wanted.items():
        array = feeds[name]
        if not spec.is_numeric:
            raise DataError(
                place,
                f"the model's input {name!r} has type {spec.dtype}, "
                "but only tensors of numbers are supported",
                "export the model with tensors of numbers as inputs",
            )
        if array.dtype.name != spec.dtype:
            raise DataError(place, f"feed {name!r} has dtype {array.dtype}", f"convert it to {spec.dtype}")
        fits = len(array.shape) == len(spec.shape) and all(
            # Axis 0 is the sample axis. It is split into batches, so any size fits.
            axis == 0 or want is None or got == want
            for axis, (got, want) in enumerate(zip(array.shape, spec.shape, strict=True))
        )
        if not fits:
            if not spec.shape:
                raise DataError(
                    place,
                    f"feed {name!r} has shape {list(array.shape)}, but the model states no shape for it",
                    "export the model with the shapes of its inputs",
                )
            shape = ["N" if axis == 0 else s or "any" for axis, s in enumerate(spec.shape)]
            raise DataError(
                place, f"feed {name!r} has shape {list(array.shape)}", f"change its shape to {shape}"
            )


def _spec(node: onnxruntime.NodeArg) -> TensorSpec:
    shape = tuple(size if isinstance(size, int) else None for size in node.shape)
    axes = {axis: size for axis, size in enumerate(node.shape) if isinstance(size, str) and size}
    return TensorSpec(node.name, _NUMPY_TYPES.get(node.type, node.type), shape, axes)
