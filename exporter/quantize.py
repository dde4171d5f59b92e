"""Static int8 through ONNX Runtime's own quantizer, told what the target CPU needs."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from bench.arrays import Array
from bench.errors import DataError
from bench.progress import Progress, Task
from exporter.data import Split, stratified_indices
from exporter.errors import ExportError
from exporter.recipe import QuantizeConfig
from exporter.targets import Target
from exporter.to_onnx import write_checked

if TYPE_CHECKING:
    from onnxruntime.quantization import CalibrationDataReader

CALIBRATION_BATCH = 16
DEFAULT_SAMPLES = 256


def quantize(
    source: Path,
    destination: Path,
    calibration: Split,
    config: QuantizeConfig,
    target: Target,
    *,
    seed: int,
    progress: Progress,
) -> dict[str, Any]:
    """Write the int8 twin of a float model, in QDQ form.

    Args:
        source: the float model, BatchNorm folded.
        destination: the file to write.
        calibration: samples to collect activation ranges on; `config.samples` of them, drawn with the
            classes in proportion.
        config: what to quantize.
        target: the CPU kind that decides types.
        seed: of the draw.
        progress: told of every batch.

    Raises:
        DataError: too few samples.
        ExportError: an excluded node does not exist, or ONNX Runtime refuses the model.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    graph = onnx.load(source).graph
    names = {node.name for node in graph.node}
    for name in config.exclude:
        if name not in names:
            raise ExportError(
                "quantize.exclude", f"the graph has no node {name!r}", f"it has: {_some(names)}"
            )
    count = sample_count(calibration, config)
    drawn = stratified_indices(calibration.labels, {"calibration": count}, seed, "quantize.samples")
    samples = calibration.take(drawn["calibration"])
    activation = QuantType.QInt8 if target.signed_activations else QuantType.QUInt8
    batches = -(-samples.count // CALIBRATION_BATCH)
    with progress.task("calibration", batches) as task, tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "int8.onnx"
        logging.getLogger().addFilter(_no_preprocessing_advice)
        try:
            quantize_static(
                str(source),
                str(raw),
                _reader(samples, task),
                quant_format=QuantFormat.QDQ,
                activation_type=activation,
                weight_type=QuantType.QInt8,
                per_channel=target.per_channel,
                reduce_range=target.reduce_range,
                nodes_to_exclude=list(config.exclude),
                calibrate_method=CalibrationMethod.MinMax,
            )
        except Exception as error:  # the quantizer raises ValueError, RuntimeError and its own
            raise ExportError(
                source.name, f"ONNX Runtime cannot quantize it ({error})", "exclude the node it names"
            ) from error
        finally:
            logging.getLogger().removeFilter(_no_preprocessing_advice)
        model = onnx.load(raw)
    _carry_metadata(onnx.load(source), model, target)
    write_checked(model, destination)
    counts = {"QuantizeLinear": 0, "DequantizeLinear": 0}
    for node in model.graph.node:
        if node.op_type in counts:
            counts[node.op_type] += 1
    return {
        "target": target.name,
        "activation_type": "int8" if target.signed_activations else "uint8",
        "weight_type": "int8",
        "per_channel": target.per_channel,
        "reduce_range": target.reduce_range,
        "method": "minmax",
        "samples": samples.count,
        "quantize_nodes": counts["QuantizeLinear"],
        "dequantize_nodes": counts["DequantizeLinear"],
    }


def sample_count(calibration: Split, config: QuantizeConfig) -> int:
    """How many calibration samples to use.

    Raises:
        DataError: more are asked for than there are.
    """
    if config.samples is None:
        return min(DEFAULT_SAMPLES, calibration.count)
    if config.samples > calibration.count:
        raise DataError(
            "quantize.samples",
            f"{config.samples} samples are asked for, the calibration split has {calibration.count}",
            "ask for fewer",
        )
    return config.samples


def _reader(samples: Split, task: Task) -> CalibrationDataReader:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        """Hands batches to the calibrator and tells how many are done."""

        def __init__(self) -> None:
            self._batches: Iterator[dict[str, Array]] = samples.batches(CALIBRATION_BATCH)

        def get_next(self) -> dict[str, Array] | None:
            """The next feeds, or None at the end."""
            feeds = next(self._batches, None)
            if feeds is None:
                return None
            task.advance()
            return {name: np.ascontiguousarray(array) for name, array in feeds.items()}

    return Reader()


def _carry_metadata(source: onnx.ModelProto, model: onnx.ModelProto, target: Target) -> None:
    """Keep the provenance, add the target, and drop the marks of ONNX Runtime's shape inference."""
    metadata = {entry.key: entry.value for entry in source.metadata_props}
    metadata["edgeproof.target"] = target.name
    del model.metadata_props[:]
    for key in sorted(metadata):
        model.metadata_props.add(key=key, value=metadata[key])


def _no_preprocessing_advice(record: logging.LogRecord) -> bool:
    """The quantizer advises a preprocessing that the exporter has already done."""
    return "pre-processing before quantization" not in record.getMessage()


def _some(names: set[str]) -> str:
    return ", ".join(sorted(names)[:12])
