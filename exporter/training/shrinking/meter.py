"""Export a network during a stage, and measure its latency and size on this CPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import onnx
from torch import nn

from bench.core.progress import SILENT
from bench.inputs.evaluation import EvaluationSet, write_evaluation
from bench.inputs.host import fingerprint
from bench.measuring.measure import MeasureConfig, Measurement
from exporter.caching.cache import content_key
from exporter.caching.provenance import library_versions, own_code
from exporter.graphs.rewrites.processing import as_shipped
from exporter.graphs.targets import Target, find_target
from exporter.onnx_export.export import export
from exporter.options import Precision
from exporter.quantization.int8 import Int8Settings, quantize_model
from exporter.recipes import ExportConfig, QuantizeConfig
from exporter.sources.splits import Split
from exporter.training.shrinking.kernel_table import KernelTable
from exporter.training.shrinking.kernel_timing import Setting, time_kernels

# The exported form of a network; only the meter that created it can read it.
Exported = TypeVar("Exported")

# The calibrated ranges do not affect latency, so a few samples are enough.
RANGE_SAMPLES = 8
# With 3 blocks on a busy machine, a latency ratio was sometimes wrong by a tenth.
BLOCKS = 7


@dataclass(frozen=True)
class Measured:
    """Median latency of one sample and file size in bytes of a network in its deployed form."""

    latency_ms: float
    size_bytes: int


class Meter(Protocol[Exported]):
    """The measurements that a stage needs. The result of `export` is only an argument of `measure`."""

    def table(self) -> KernelTable:
        """A table of kernel times, which the caller fills."""

    def export(self, module: nn.Module) -> Exported:
        """Export a network for `measure`."""

    def export_float(self, module: nn.Module) -> Exported:
        """Export a network for `measure` in float, for every precision setting."""

    def measure(self, exported: Sequence[Exported]) -> list[Measured]:
        """Time networks in turns."""


@dataclass(frozen=True, kw_only=True)
class HostMeter:
    """Measures on this CPU.

    Attributes:
        folder: folder for the exported networks; the caller removes it.
        sample: at least two samples.
        precision: precision of the exported networks and the kernels.
        export_config: export settings of the recipe.
        quantize_config: quantization settings of the recipe.
        threads: number of threads of each session.
        timings: folder that stores kernel times between builds; None stores nothing.
    """

    folder: Path
    sample: Split
    precision: Precision
    export_config: ExportConfig = field(default_factory=ExportConfig)
    quantize_config: QuantizeConfig = field(default_factory=QuantizeConfig)
    threads: int = 1
    timings: Path | None = None

    def table(self) -> KernelTable:
        """The table of kernel times for this host, these library versions and this setting."""
        setting = Setting(self.precision, self._target, self.threads)
        key = content_key(
            {
                "host": fingerprint().model_dump(mode="json"),
                "onnxruntime": library_versions()["onnxruntime"],
                "code": own_code(),
                "precision": self.precision,
                "target": setting.target.name,
                "threads": self.threads,
            }
        )
        path = None if self.timings is None else self.timings / f"{key}.json"
        return KernelTable(lambda kernels: time_kernels(kernels, setting), path)

    def export(self, module: nn.Module) -> Path:
        """Write the network in its deployed form; its shapes are exact, its ranges are approximate."""
        path = self.export_float(module)
        if self.precision == "fp32":
            return path
        small = path.with_suffix(".int8.onnx")
        settings = Int8Settings(
            self._target, exclude=self.quantize_config.exclude, all_may_be_excluded=True
        )
        quantize_model(onnx.load(path), small, self._fed, settings, progress=SILENT)
        return small

    def export_float(self, module: nn.Module) -> Path:
        """Write the network in its deployed form, in float."""
        path = self.folder / f"{len(list(self.folder.iterdir()))}.onnx"
        export(module, self.sample, path, self.export_config, {})
        return path

    def measure(self, exported: Sequence[Path]) -> list[Measured]:
        """Median over fresh processes of the median latency, measured in turns, and file size in bytes."""
        feeds = self.folder / "feeds.npz"
        write_evaluation(feeds, EvaluationSet(self._fed.inputs, None, None))
        with Measurement(exported, feeds, MeasureConfig(threads=self.threads)) as measurement:
            measurement.add_blocks(BLOCKS)
            found = measurement.result().models
        return [
            Measured(
                float(np.median([np.median(run.samples_ns()) for run in model.runs])) / 1e6,
                model.size_bytes,
            )
            for model in found
        ]

    @property
    def _fed(self) -> Split:
        """A few samples in the form in which a device feeds them."""
        return as_shipped(self.sample.first(RANGE_SAMPLES), self.export_config.preprocess)

    @property
    def _target(self) -> Target:
        return find_target(self.quantize_config.target, self.quantize_config.onnxruntime)
