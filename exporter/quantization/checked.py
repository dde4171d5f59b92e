"""Quantize to int8 and prove it before it is written: close to float, and not slower."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx

from bench.core.progress import Progress
from exporter.graphs.node_patterns import named_nodes
from exporter.graphs.onnx_files import read_model, write_checked
from exporter.graphs.trained_qparams import NO_TRAINED_QPARAMS, TrainedQparams
from exporter.inspection.fidelity import closeness
from exporter.quantization.attempts import Attempts, with_names
from exporter.quantization.calibration import RangeStore
from exporter.quantization.faithful import Judged, fidelity_of, remedied
from exporter.quantization.fastest import Race, raced
from exporter.quantization.int8 import Int8Settings
from exporter.quantization.output import Accept, accept_all
from exporter.quantization.short_masks import with_short_masks
from exporter.results import Int8Model, Remedy
from exporter.sources.splits import Samples


def quantize_checked(
    model: onnx.ModelProto,
    destination: Path,
    samples: Samples,
    settings: Int8Settings,
    *,
    judged: Judged,
    race: Race,
    progress: Progress,
    store: RangeStore | None = None,
    reference: onnx.ModelProto | None = None,
    trained_qparams: TrainedQparams = NO_TRAINED_QPARAMS,
    accept: Accept = accept_all,
) -> Int8Model:
    """Quantize a float model, compare it with float, time it, and write it.

    1. If the outputs differ much from float, remedies are tried (`faithful`). They are not tried after
       repairs or a training for quantization: then the layers and ranges were chosen already.
    2. Regions that are slower in int8 on this CPU return to float (`fastest`). A model that is proven to be
       slower than float is not written, unless the goal is size.

    Before, the constants of attention masks are shortened (`short_masks`).

    The other arguments are those of `quantize_model`.

    Args:
        judged: samples that judge the model, with the outputs of the float model.
        race: the float model to be faster than, and the goal.

    Returns:
        The properties of the model, with its fidelity and its speed.

    Raises:
        SlowerError: int8 is proven to be slower than float, and the goal is speed; nothing is written.
        DataError, ExportError: as `quantize_model`.
    """
    named = with_names(with_short_masks(model, judged.answers))
    settings = replace(settings, exclude=named_nodes(named, settings.exclude))
    with TemporaryDirectory(prefix="edgeproof-") as name:
        folder = Path(name)
        attempts = Attempts(
            model=named,
            folder=folder,
            samples=samples,
            store=store or RangeStore(folder, "samples"),
            progress=progress,
            reference=reference,
            trained_qparams=trained_qparams,
            accept=accept,
        )
        first = attempt = attempts(settings)
        found = closeness(judged.answers, first.path)
        remedies: tuple[Remedy, ...] = ()
        if trained_qparams is NO_TRAINED_QPARAMS:
            attempt, remedies = remedied(first, judged, found)
        attempt, verdict = raced(attempt, race)
        if attempt is not first:
            found = closeness(judged.answers, attempt.path)
        fidelity = fidelity_of(attempt, judged, found, remedies)
        write_checked(read_model(attempt.path), destination)
        return attempt.made.model_copy(update={"fidelity": fidelity, **verdict})
