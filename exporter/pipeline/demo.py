"""`edgeproof demo`: from a float .onnx to a verdict, in about one minute."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

import numpy as np

from bench.core.arrays import write_npz
from bench.core.files import AnyPath, atomic_directory, write_bytes, write_text
from bench.core.progress import SILENT, Progress
from bench.inputs.evaluation import IDS, LABELS
from bench.judging.gate import GateOptions, Judgement, gate, with_plain_paths
from bench.measuring.measure import DEFAULT_CONFIG, TIME_LIMIT, MeasureConfig
from bench.measuring.result import write_result
from bench.views.tables import (
    figures_table,
    judgement_json,
    mebibytes,
    short_names,
    styled_verdict,
    verdict_table,
)
from exporter.extras import require
from exporter.inspection.inspect import Inspection, inspect
from exporter.pipeline.demo_data import (
    PACKAGE,
    DemoData,
    ShippedModel,
    data_folders,
    labelled_files,
    shipped_model,
)
from exporter.pipeline.destination import check_new_folder
from exporter.pipeline.quantize import quantize
from exporter.results import QuantizedFile

if TYPE_CHECKING:
    from rich.console import RenderableType

    from bench.core.schema import Json

INPUT: Final = "bytes"
MODEL, INT8, CALIBRATION, EVALUATION = "model.onnx", "int8.onnx", "calibration.npz", "evaluation.npz"
POLICY, RESULT = "budgets.toml", "result.json"

# Number of pairs at a gate's first look. The demo has no other look, so this look uses the whole allowed
# error.
PAIRS = 10
# Each pair of processes yields one score, and the verdict depends on the scores. With fewer rounds the
# scores vary more and the bounds are wider; the error rates stay the same.
ROUNDS = 8
# The measurement stops `LIMIT_S` seconds after the start of the demo, but not before it has taken
# `LEAST_MEASURING_S`. With too few pairs the verdict is INCONCLUSIVE.
LIMIT_S, LEAST_MEASURING_S = 53.0, 20.0

BUDGETS: Final = """\
# Budgets of the int8 model, relative to the float one.
[baseline]
latency_p50 = -0.10  # the median at least 10 % lower
latency_p90 = 0.0    # the 90th percentile no higher
peak_rss = 0.02      # at most 2 % more memory
size = -0.5          # at most half the size
accuracy = 0.01      # at most one point less
"""

Tell = Callable[["RenderableType"], None]


@dataclass(frozen=True)
class Demo:
    """The result of the demo.

    Attributes:
        out: the folder with the files; None if the files were removed.
        model: the float model.
        data: the samples.
        quantized: the int8 model.
        inspection: the operators that run in int8 and in float.
        judgement: the judgement of the gate.
        seconds: wall time of the demo.
    """

    out: Path | None
    model: ShippedModel
    data: DemoData
    quantized: QuantizedFile
    inspection: Inspection
    judgement: Judgement
    seconds: float

    def as_json(self) -> Json:
        """The object that `demo --json` prints."""
        judged = judgement_json(self.judgement)
        return {
            "verdict": judged["verdict"],
            "reasons": judged["reasons"],
            "metrics": judged["metrics"],
            "out": None if self.out is None else str(self.out),
            "seconds": self.seconds,
            "package": {
                "name": self.model.package,
                "version": self.model.version,
                "licence": self.model.licence,
            },
            "data": {
                "calibration": len(self.data.calibration),
                "evaluation": len(self.data.evaluation),
                "types": self.data.types,
            },
            "quantize": self.quantized.as_json(),
            "inspect": self.inspection.as_json(),
            "gate": judged,
        }


def demo(
    out: AnyPath | None = None,
    *,
    progress: Progress = SILENT,
    tell: Tell | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Demo:
    """Quantize, inspect, compare and gate a model that an installed package ships.

    Args:
        out: a new or empty folder for the files; by default they are removed.
        progress: receives a message for every batch and block.
        tell: receives each part of the text output; None if no text is wanted.
        clock: returns the current time in seconds.

    Raises:
        MissingExtraError: the extra `demo` is not installed.
        UsageError: `out` exists and is not empty.
        DataError: this installation has too few files of known types.
        Interrupted: the user pressed Ctrl-C.
    """
    begun, tell = clock(), tell or _no_one
    for module in (PACKAGE, "onnx", "onnx_ir", "onnxscript"):
        require(module, "demo")
    kept = None if out is None else Path(out)
    if kept is not None:
        check_new_folder(kept)
    model = shipped_model()
    data = labelled_files(data_folders(), model.classes)
    _tell_start(tell, model, data)
    with _folder(kept) as folder:
        _write_inputs(folder, model, data)
        quantized = _quantize(folder, progress, tell)
        inspection = _inspect(folder, tell)
        left_s = max(LEAST_MEASURING_S, LIMIT_S - (clock() - begun))
        judgement = _judge(folder, left_s, progress, tell)
        write_result(folder / RESULT, judgement.result)
    place = Path(INT8) if kept is None else kept / INT8
    quantized = quantized.model_copy(update={"model": place})
    found = Demo(kept, model, data, quantized, inspection, judgement, clock() - begun)
    _tell_verdict(tell, found)
    _tell_end(tell, found)
    return found


def _no_one(_part: RenderableType) -> None:
    """Ignore a part of the text output."""


@contextmanager
def _folder(out: Path | None) -> Iterator[Path]:
    """The folder to work in: it becomes `out`, or is removed."""
    if out is not None:
        with atomic_directory(out.absolute()) as folder:
            yield folder
        return
    with TemporaryDirectory(prefix="edgeproof-demo-") as temporary:
        yield Path(temporary)


def _write_inputs(folder: Path, model: ShippedModel, data: DemoData) -> None:
    write_bytes(folder / MODEL, model.path.read_bytes())
    write_npz(folder / CALIBRATION, {INPUT: data.calibration})
    arrays = {INPUT: data.evaluation, LABELS: data.labels, IDS: np.array(data.ids)}
    write_npz(folder / EVALUATION, arrays)
    write_text(folder / POLICY, BUDGETS)


def _quantize(folder: Path, progress: Progress, tell: Tell) -> QuantizedFile:
    _tell_step(
        tell,
        "1. quantize: 8-bit arithmetic is faster, 8-bit weights are smaller; real samples set the ranges.",
        f"edgeproof quantize {MODEL} --data {CALIBRATION} --out {INT8}",
    )
    found = quantize(folder / MODEL, folder / INT8, data=folder / CALIBRATION, progress=progress)
    before, after = (mebibytes((folder / name).stat().st_size) for name in (MODEL, INT8))
    _tell_lines(tell, f"{before} became {after}, for {found.made.target}, in {found.seconds:.1f} s")
    return found


def _inspect(folder: Path, tell: Tell) -> Inspection:
    from exporter.inspection.audit import share_text

    _tell_step(
        tell,
        "2. inspect: shows what ONNX Runtime really runs; a layer that stays in float does not get faster.",
        f"edgeproof inspect {INT8} --data {CALIBRATION}",
    )
    found = inspect(folder / INT8, data=folder / CALIBRATION)
    audit = found.audit
    _tell_lines(tell, share_text(audit))
    for operator in audit.float_ops:
        share = operator.macs / audit.macs if audit.macs else 0.0
        name = "/".join(operator.name.split("/")[-3:])  # the scopes before the name are long
        _tell_lines(tell, f"in float: {name} ({operator.op_type}, {share:.1%}): {operator.reason}")
    if audit.saturation:
        worst = max(layer.observed_share or 0.0 for layer in audit.saturation)
        _tell_lines(
            tell,
            f"{len(audit.saturation)} layers may saturate without VNNI; on {audit.samples} samples at most "
            f"{worst:.3%} of the sums of a layer do",
        )
    return found


def _judge(folder: Path, time_limit_s: float, progress: Progress, tell: Tell) -> Judgement:
    _tell_step(
        tell,
        f"3. compare: a single run is unreliable, so {PAIRS} pairs of fresh processes take turns.",
        f"edgeproof compare {MODEL} {INT8} --data {EVALUATION} --pairs {PAIRS}",
    )
    found = with_plain_paths(
        gate(
            folder / INT8,
            folder / MODEL,
            folder / POLICY,
            data=folder / EVALUATION,
            options=GateOptions(pairs=PAIRS),
            config=MeasureConfig(rounds=ROUNDS, time_limit_s=time_limit_s),
            progress=progress,
        )
    )
    if found.blocks:
        tell(figures_table(short_names(found.result.models), found.metrics))
    return found


def _tell_lines(tell: Tell, *lines: str) -> None:
    from rich.text import Text

    for line in lines:
        tell(Text(line))


def _tell_step(tell: Tell, why: str, command: str) -> None:
    _tell_lines(tell, "", why, f"$ {command}")


def _tell_start(tell: Tell, model: ShippedModel, data: DemoData) -> None:
    _tell_lines(
        tell,
        f"model: {model.package} {model.version} ({model.licence}) names the type of a file; its authors "
        "trained and exported it.",
        f"data:  {len(data.evaluation)} files of this Python installation, {data.types} types; the suffix "
        f"is the label. {len(data.calibration)} other files are the calibration samples.",
    )


def _tell_verdict(tell: Tell, found: Demo) -> None:
    judgement, classes = found.judgement, found.model.classes
    _tell_step(
        tell,
        f"4. gate: a release needs a verdict; every confidence bound must meet its budget in {POLICY}.",
        f"edgeproof gate {INT8} --baseline {MODEL} --policy {POLICY} --data {EVALUATION} --pairs {PAIRS}",
    )
    if judgement.blocks:
        tell(verdict_table(judgement.metrics))
    tell(styled_verdict(judgement.verdict))
    _tell_lines(tell, *(f"  {reason}" for reason in judgement.reasons))
    if judgement.result.stopped == TIME_LIMIT:
        _tell_lines(
            tell, "This machine was too busy for all pairs in a minute: run the demo again when it is idle."
        )
    if judgement.flips:
        first = judgement.flips[0]
        _tell_lines(
            tell,
            f"{len(judgement.flips)} of {len(found.data.ids)} predictions changed, the first one for "
            f"{first.sample}: {classes[first.baseline]} became {classes[first.candidate]}",
        )
    _tell_lines(tell, judgement.result.certificate)


def _tell_end(tell: Tell, found: Demo) -> None:
    kept = "The files were removed; --out DIR keeps them."
    _tell_lines(
        tell,
        "",
        f"Done in {found.seconds:.0f} s. Steps 3 and 4 used one measurement with {ROUNDS} rounds per pair; "
        f"by default, the commands use up to {DEFAULT_CONFIG.rounds} rounds.",
        kept if found.out is None else f"The files are in {found.out}.",
        "",
        "For your own model: an .npz needs one array per model input, and for the gate also `labels`.",
        "  edgeproof quantize MODEL.onnx --data CALIBRATION.npz --out INT8.onnx",
        "  edgeproof inspect INT8.onnx --data CALIBRATION.npz",
        "  edgeproof gate INT8.onnx --baseline MODEL.onnx --data EVALUATION.npz",
    )
