"""The charts of the report, as SVG text without scripts or links."""

from __future__ import annotations

import importlib
import io
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.measuring.result import ModelResult
from exporter.results import Epoch, FewShotPoint, LayerError

_COLOURS = ("#4e79a7", "#e15759", "#59a14f", "#f28e2b", "#76b7b2")
_SIZE_INCHES = (7.2, 3.0)
_FOLDER_VARIABLE = "MPLCONFIGDIR"


def import_matplotlib(folder: Path) -> None:
    """Import Matplotlib so that it stores its font list in `folder`, not in the home folder.

    Matplotlib reads the environment variable MPLCONFIGDIR only during its import, so the variable is set
    for the duration of the import. Nothing is changed if the variable is already set or Matplotlib is
    already imported. Only one thread at a time may call this function (`exporter.process`).
    """
    if _FOLDER_VARIABLE in os.environ or "matplotlib.font_manager" in sys.modules:
        return
    os.environ[_FOLDER_VARIABLE] = str(folder)
    try:
        importlib.import_module("matplotlib.font_manager")
    finally:
        del os.environ[_FOLDER_VARIABLE]


def latency_chart(models: Mapping[str, ModelResult]) -> str:
    """Cumulative distribution of the latency of all timed inferences, in milliseconds."""
    figure, axes = _figure()
    for colour, (name, model) in zip(_COLOURS, models.items(), strict=False):
        samples = np.sort(np.concatenate([run.samples_ns() for run in model.runs])) / 1e6
        share = np.arange(1, len(samples) + 1) / len(samples)
        axes.step(samples, share, label=name, color=colour, where="post")
    everything = np.concatenate([run.samples_ns() for m in models.values() for run in m.runs]) / 1e6
    axes.set_xlim(0, float(np.quantile(everything, 0.99)) * 1.05)
    axes.set_xlabel("latency, ms (the axis ends 5 % above the 99th percentile)")
    axes.set_ylabel("fraction of inferences")
    axes.legend(frameon=False, loc="upper right")
    return _svg(figure)


def block_chart(models: Mapping[str, ModelResult]) -> str:
    """Median latency of every process in the order of measurement; it shows drift and outliers."""
    figure, axes = _figure()
    for colour, (name, model) in zip(_COLOURS, models.items(), strict=False):
        medians = [float(np.median(run.samples_ns())) / 1e6 for run in model.runs]
        axes.plot(range(1, len(medians) + 1), medians, "o-", markersize=4, label=name, color=colour)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("block (one fresh process per model)")
    axes.set_ylabel("median latency, ms")
    axes.legend(frameon=False, loc="upper right")
    return _svg(figure)


def training_chart(runs: Mapping[str, Sequence[Epoch]]) -> str:
    """Accuracy per epoch of each training: validation as a solid line, training as a dashed line."""
    figure, axes = _figure()
    for index, (name, curves) in enumerate(runs.items()):
        colour = _COLOURS[index % len(_COLOURS)]
        epochs = [line.epoch for line in curves]
        axes.plot(
            epochs,
            [line.validation_accuracy for line in curves],
            "o-",
            markersize=3,
            color=colour,
            label=name,
        )
        axes.plot(epochs, [line.train_accuracy for line in curves], "--", color=colour, alpha=0.6)
    axes.set_xlabel("epoch, from 0 (validation solid, training dashed)")
    axes.set_ylabel("accuracy")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(frameon=False, loc="lower right")
    return _svg(figure)


def few_shot_chart(points: Sequence[FewShotPoint]) -> str:
    """Accuracy over the number of images per class: a dot for each training, a line through the means."""
    figure, axes = _figure()
    images = [point.images for point in points]
    drawn = {
        "pretrained": [point.transfer for point in points],
        "from scratch": [point.from_scratch for point in points],
    }
    for colour, (label, accuracies) in zip(_COLOURS, drawn.items(), strict=False):
        for count, found in zip(images, accuracies, strict=True):
            axes.plot([count] * len(found), found, "o", markersize=3, color=colour)
        axes.plot(images, [float(np.mean(found)) for found in accuracies], "-", color=colour, label=label)
    axes.set_xscale("log")
    axes.set_xticks(images, [str(count) for count in images], minor=False)
    axes.minorticks_off()
    axes.set_xlabel("training images per class")
    axes.set_ylabel("accuracy")
    axes.legend(loc="lower right", frameon=False)
    return _svg(figure)


def layer_chart(layers: Sequence[LayerError]) -> str:
    """SQNR of each quantized tensor, in the order of the graph."""
    figure, axes = _figure()
    values = [min(layer.sqnr_db, 60.0) for layer in layers]
    axes.bar(range(len(values)), values, color=_COLOURS[0])
    axes.set_xlabel("quantized tensor, in graph order")
    axes.set_ylabel("SQNR, dB")
    return _svg(figure)


def _figure() -> tuple[Any, Any]:
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE_INCHES, layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    return figure, axes


def _svg(figure: Any) -> str:
    import matplotlib as mpl

    buffer = io.StringIO()
    # Text is kept as text so that the page can be searched. There is no date, so equal data give equal
    # bytes.
    with mpl.rc_context({"svg.hashsalt": "edgeproof", "svg.fonttype": "none"}):
        metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", metadata=metadata)
    text = buffer.getvalue()
    return text[text.index("<svg") :]
