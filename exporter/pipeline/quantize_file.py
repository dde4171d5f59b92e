"""Quantize a float .onnx or .pt2 file without a recipe, to int8 or 4 bits."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
import onnx_ir as ir

from bench.core.arrays import Array
from bench.core.errors import ModelError, UsageError
from bench.core.files import check_writable, model_sha256, model_size, sha256_of
from bench.core.progress import SILENT, Progress
from bench.inputs.evaluation import SampleRows, open_samples, read_evaluation
from bench.inputs.runtime import RuntimeVersion
from bench.inputs.session import Signature, check_feeds, open_session, signature_of
from bench.measuring.worker import fixed_batch, memory_bytes
from exporter.extras import require
from exporter.graphs.given_names import excluded_nodes, read_given, restore_names
from exporter.graphs.index import GraphIndex
from exporter.graphs.kernels import check_runtime_asked
from exporter.graphs.normal_form import normalize
from exporter.graphs.observed import bad_sample
from exporter.graphs.onnx_files import check_quantizable, read_model
from exporter.graphs.pins import Pin, pin_inputs, pin_signature, pinned_sizes
from exporter.graphs.rewrites import rewrite_for_cpu
from exporter.graphs.stale_shapes import forget_stale_shapes
from exporter.graphs.targets import Target, find_target
from exporter.inspection.same_outputs import (
    Answer,
    answers_of,
    check_defined,
    check_same_outputs,
    check_same_values,
    few_samples,
    made_up_samples,
)
from exporter.inspection.uninformative import output_warnings, sample_warnings
from exporter.options import CalibrationMethod, Goal, TargetName
from exporter.quantization.calibration import RangeStore
from exporter.quantization.checked import quantize_checked
from exporter.quantization.faithful import Judged
from exporter.quantization.fastest import Race
from exporter.quantization.int4 import quantize_weights
from exporter.quantization.int8 import Int8Settings
from exporter.quantization.int8_repaired import NO_REPAIR, RepairSettings, quantize_repaired
from exporter.quantization.repair.held_out import RepairSamples, hold_out
from exporter.recipes import ExportConfig
from exporter.results import Int4Model, Int8Model, QuantizedFile
from exporter.sources.held_out import (
    Without,
    rows_that_judge,
    rows_to_hold_out,
    rows_to_judge,
    take_rows,
)
from exporter.sources.splits import Samples

PROGRAM_SUFFIX = ".pt2"


def quantize_weights_file(
    model: Path,
    out: Path,
    *,
    target: TargetName = "auto",
    block_size: int = 32,
    exclude: tuple[str, ...] = (),
    onnxruntime: str | None = None,
    pins: tuple[Pin, ...] = (),
) -> QuantizedFile:
    """Quantize the weights of matrix products to 4 bits; needs no samples.

    Args:
        model: a float `.onnx` file, or a `.pt2` program, which needs torch.
        out: the `.onnx` file to write.
        target: the kind of CPU that the model will run on.
        block_size: number of weights that share a scale.
        exclude: nodes of the given file to keep in float, by name, module or pattern with `*`.
        onnxruntime: versions of ONNX Runtime that the model must run on, for example `>=1.24`; for the
            default see `exporter.graphs.targets`.
        pins: sizes of open axes.

    Raises:
        UsageError: `out` is an input file, or the model has no such open axis.
        ModelError: the model cannot be loaded or quantized.
        ExportError: an excluded node does not exist, or there is nothing to quantize.
    """
    start = time.monotonic()
    check_writable(out, [model])
    chosen = _target(target, onnxruntime)
    with _float_file(model) as path:
        proto, signature = _read_float(path, None if onnxruntime is None else chosen.runtime, pins)
        given = read_given(path)
        answers = _answers_if_any(path, made_up_samples(path, signature))
    network = _prepared(proto, model, answers, given)
    made = quantize_weights(
        network,
        out,
        block_size=block_size,
        exclude=excluded_nodes(network, given, exclude),
        target=chosen,
        accept=partial(check_same_outputs, model, answers),
    )
    return _written(out, made, start)


def quantize_file(
    model: Path,
    data: Path,
    out: Path,
    *,
    target: TargetName = "auto",
    method: CalibrationMethod = "minmax",
    exclude: tuple[str, ...] = (),
    cache: Path | None = None,
    repairs: RepairSettings = NO_REPAIR,
    goal: Goal = "speed",
    onnxruntime: str | None = None,
    pins: tuple[Pin, ...] = (),
    progress: Progress = SILENT,
) -> QuantizedFile:
    """Quantize a float model statically to int8.

    Args:
        model: a float `.onnx` file, or a `.pt2` program, which needs torch.
        data: calibration samples, an `.npz` with one array per model input; `labels` are not needed.
        out: the `.onnx` file to write.
        target: the kind of CPU that the model will run on.
        method: method that chooses the activation ranges.
        exclude: nodes of the given file to keep in float, by name, module or pattern with `*`.
        cache: folder in which activation ranges are stored, so that the same model and samples need no new
            calibration if only `exclude` changes; None stores nothing.
        repairs: accuracy repairs and fallback; they are scored on a quarter of the samples.
        goal: `speed` writes nothing if int8 is proven to be slower than float on this CPU; `size` writes.
        onnxruntime: versions of ONNX Runtime that the model must run on, for example `>=1.24`; for the
            default see `exporter.graphs.targets`.
        pins: sizes of open axes.
        progress: receives a message for every batch.

    Raises:
        ModelError: the model cannot be loaded or quantized.
        DataError: the samples are invalid, or do not fit the model.
        UsageError: `out` is an input file, the model has no open axis that a pin names, or repairs are
            unknown or in an invalid order.
        ExportError: no configuration meets the limits of the fallback.
        SlowerError: int8 is slower than float, and the goal is speed.
    """
    start = time.monotonic()
    check_writable(out, [model, data])
    if cache is not None:
        check_writable(cache / "ranges.json")  # any file name checks that the folder is writable
    chosen = _target(target, onnxruntime)
    samples = open_samples(data)
    with _float_file(model) as path:
        proto, signature = _read_float(path, None if onnxruntime is None else chosen.runtime, pins)
        given = read_given(path)
        check_feeds(data, signature, samples.feeds)
        batch = fixed_batch(signature)
        rest, judged = _held_out(data, path, samples, batch)
        found = (*sample_warnings(samples), *output_warnings(judged.answers))
        network = _prepared(proto, model, judged.answers, given)
        excluded = excluded_nodes(network, given, exclude)
        settings = Int8Settings(chosen, method, excluded, batch)
        finish = partial(
            quantize_checked,
            judged=judged,
            race=Race(path, goal, cache),
            accept=partial(check_same_outputs, model, judged.answers),
        )
        if repairs.asked:
            repaired = _for_repairs(data, settings.fixed_batch)
            made = quantize_repaired(
                network, out, repaired, settings, repairs, finish=finish, progress=progress
            )
        else:
            store = None if cache is None else RangeStore(cache, f"{sha256_of(data)}-{rest.count}")
            made = finish(network, out, rest, settings, progress=progress, store=store)
    return _written(out, made, start, found)


def _for_repairs(data: Path, fixed: int | None) -> RepairSamples:
    """The samples for repairs. They are kept in memory, once, because repairs read them many times."""
    loaded = read_evaluation(data)
    return hold_out(loaded.feeds, loaded.labels, fixed)


def _target(name: TargetName, onnxruntime: str | None) -> Target:
    try:
        return find_target(name, onnxruntime)
    except ValueError as error:
        raise UsageError(
            "--onnxruntime", str(error), "name the oldest version that must run the model"
        ) from error


@contextmanager
def _float_file(model: Path) -> Iterator[Path]:
    """The float `.onnx`: the file itself, or a temporary file that a `.pt2` program is exported to."""
    if model.suffix != PROGRAM_SUFFIX:
        yield model
        return
    require("torch", "export")
    from exporter.onnx_export.export import export_program

    with TemporaryDirectory(prefix="edgeproof-") as folder:
        exported = Path(folder) / f"{model.stem}.onnx"
        export_program(model, exported, ExportConfig().opset)
        yield exported


def _read_float(
    model: Path, asked: RuntimeVersion | None, pins: Sequence[Pin]
) -> tuple[onnx.ModelProto, Signature]:
    """Read a float model, check that it can be quantized, and return it with its signature.

    Args:
        model: the `.onnx` file.
        asked: the oldest ONNX Runtime that must run the model; None if the user named none.
        pins: sizes of open axes, which the result states.

    Raises:
        UsageError: the model has no open axis that a pin names.
        ModelError: the model cannot be loaded or quantized, or needs a newer ONNX Runtime.
    """
    proto = normalize(read_model(model), model)
    check_quantizable(proto, model)
    if asked is not None:
        check_runtime_asked(proto, asked, model)
    signature = signature_of(open_session(model))
    sizes = pinned_sizes(signature, pins)
    pin_inputs(proto, sizes)
    return proto, pin_signature(signature, sizes)


def _held_out(data: Path, model: Path, samples: SampleRows, batch: int | None) -> tuple[Samples, Judged]:
    """The samples to calibrate with, and others that judge the result; a few of the same if they are few.

    Raises:
        DataError: the model could be loaded but fails on a sample.
    """
    held = rows_to_hold_out(samples.count, batch, samples.groups())
    judges = held if batch else rows_that_judge(held)
    judges = judges or rows_to_judge(samples.count, batch)
    answers = _answers_to(data, model, few_samples(take_rows(samples, judges), batch))
    return Without(samples, held, batch), Judged(answers, held_out=bool(held))


def _prepared(
    proto: onnx.ModelProto, model: Path, answers: Sequence[Answer], given: GraphIndex
) -> onnx.ModelProto:
    """Prepare a float network, and check that it computes the same as the given file.

    Raises:
        ExportError: it computes something else.
    """
    network = prepare(proto, answers)
    check_same_values(model, answers, network)
    restore_names(network, given)
    return network


def _answers_to(data: Path, model: Path, batches: Sequence[Mapping[str, Array]]) -> list[Answer]:
    """The outputs of a model for batches of samples.

    Raises:
        DataError: the model could be loaded but fails on a sample.
        ModelError: an output is NaN.
    """
    try:
        answers = answers_of(model, batches)
    except ModelError as error:
        raise bad_sample(data, str(error.__cause__ or error)) from error
    check_defined(model, answers)
    return answers


def _answers_if_any(model: Path, batches: Sequence[Mapping[str, Array]]) -> list[Answer]:
    """The outputs of a model for made-up feeds; empty if it fails on them.

    If it is empty, the outputs of the quantized model are not compared; the model only has to load.
    """
    try:
        return answers_of(model, batches)
    except ModelError:  # made-up feeds may be invalid for the model, so a failure is not an error
        return []


def _written(
    out: Path, made: Int8Model | Int4Model, start: float, warnings: tuple[str, ...] = ()
) -> QuantizedFile:
    return QuantizedFile(
        model=out,
        sha256=model_sha256(out),
        size_bytes=model_size(out),
        made=made,
        seconds=time.monotonic() - start,
        peak_rss_bytes=memory_bytes("VmHWM"),
        warnings=warnings,
    )


def prepare(proto: onnx.ModelProto, answers: Sequence[Answer]) -> onnx.ModelProto:
    """Prepare a graph for quantization: fold constants, BatchNorm and padding; rewrite it for the CPU.

    Args:
        proto: the float model; it is changed.
        answers: outputs of the model. Shapes stated in the file that contradict them are removed.
    """
    from exporter.graphs.simplify import has_constant_branches, simplify

    forget_stale_shapes(proto, [answer.shapes() for answer in answers])
    model = ir.from_proto(proto)
    simplify(model)
    rewrite_for_cpu(model)
    if has_constant_branches(model):  # the rewrites found the condition of an If
        simplify(model)
        rewrite_for_cpu(model)
    return ir.to_proto(model)
