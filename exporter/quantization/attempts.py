"""Quantize one float model several times with different settings, in a temporary folder."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import onnx

from bench.core.arrays import Array
from bench.core.progress import Progress
from exporter.graphs.edits import copy_of
from exporter.graphs.names import name_nodes
from exporter.graphs.onnx_files import is_large, save_large
from exporter.graphs.trained_qparams import NO_TRAINED_QPARAMS, TrainedQparams
from exporter.options import CalibrationMethod
from exporter.quantization.calibration import RangeStore
from exporter.quantization.int8 import Int8Settings, quantize_model
from exporter.quantization.output import Accept, accept_all
from exporter.results import Int8Model
from exporter.sources.splits import Samples


@dataclass(frozen=True)
class Attempt:
    """A quantized model in a temporary folder.

    Attributes:
        path: its file.
        made: its properties.
        settings: how it was quantized.
        attempts: quantizes the same float model with other settings.
    """

    path: Path
    made: Int8Model
    settings: Int8Settings
    attempts: Attempts


@dataclass(frozen=True, kw_only=True)
class Attempts:
    """Quantizes a model with given settings. Ranges are collected, and saturation is searched, only once.

    Attributes:
        model: the float model; all its nodes have names.
        folder: the folder to write to.
        samples: calibration samples.
        store: stored ranges.
        progress: receives the progress.
        reference, trained_qparams, accept: as for `quantize_model`.
        levels: weight levels without saturation found so far, by the method that chose the ranges.
        smoothed: whether `model` is the network with smoothed channels.
    """

    model: onnx.ModelProto
    folder: Path
    samples: Samples
    store: RangeStore
    progress: Progress
    reference: onnx.ModelProto | None = None
    trained_qparams: TrainedQparams = NO_TRAINED_QPARAMS
    accept: Accept = accept_all
    levels: dict[CalibrationMethod, dict[str, Array]] = field(default_factory=dict)
    smoothed: bool = False

    def __call__(self, settings: Int8Settings) -> Attempt:
        """Quantize the model.

        Raises:
            DataError, ExportError: as `quantize_model`.
        """
        path = self.folder / f"{len(list(self.folder.glob('*-int8.onnx')))}-int8.onnx"
        made = quantize_model(
            self.model,
            path,
            self.samples,
            settings,
            progress=self.progress,
            store=self.store,
            reference=self.reference,
            trained_qparams=self.trained_qparams,
            accept=self.accept,
            found_levels=self.levels.setdefault(settings.method, {}),
        )
        return Attempt(path, made, settings, self)

    def float_file(self) -> Path:
        """A file of the float model."""
        path = self.folder / "float.onnx"
        if not path.exists():
            if is_large(self.model):
                save_large(self.model, path)
            else:
                onnx.save(self.model, path)
        return path


def with_names(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a model whose nodes all have names."""
    copy = copy_of(model)
    name_nodes(copy)
    return copy


def leaving(settings: Int8Settings, in_float: dict[str, str]) -> Int8Settings:
    """The settings with more nodes in float.

    Args:
        settings: how to quantize.
        in_float: names of nodes -> why they stay in float.
    """
    return replace(
        settings,
        exclude=tuple(dict.fromkeys((*settings.exclude, *in_float))),
        reasons={**settings.reasons, **in_float},
    )
