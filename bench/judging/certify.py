"""Measure the gate itself: false alarms on unchanged models, and power on models with a known slowdown.

Copies of one model take turns in the same blocks: an identical file, the same network in a file with other
bytes, and copies with an extra operator. The operator is sized to add a given fraction of the model's
latency or of its memory. The baseline contains the same operator at its smallest size, so only the size
differs.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from bench.core.errors import DataError, StorageError
from bench.core.files import AnyPath, check_writable, model_sha256
from bench.core.model_file import external_data
from bench.core.policy import ReleaseBudgets
from bench.core.progress import SILENT, Progress
from bench.inputs.artifact import Subject, subject
from bench.inputs.host import fingerprint
from bench.inputs.session import open_session, signature_of
from bench.judging.certificate import (
    LARGER,
    REBUILT,
    SAME,
    SLOWER,
    Certificate,
    Condition,
    FlippedLabels,
    certificate_path,
    detectable,
    read_certificate,
    write_certificate,
)
from bench.judging.degraded_models import rebuilt, with_allocation, with_product
from bench.judging.verdicts import Verdict, judge_accuracy, pair_scores
from bench.measuring.measure import DEFAULT_CONFIG, Interrupted, MeasureConfig, Measurement, WorkerGroup
from bench.measuring.result import ModelResult, Result
from bench.measuring.worker_process import worker_group

SLOWDOWNS = (0.01, 0.02, 0.03, 0.05, 0.10)
EXTRA_MEMORY = 0.10
FLIP_SHARES = (0.005, 0.01, 0.02, 0.05)
FLIP_DRAWS = 200
SIZING_BLOCKS = 3
# The first sizes to try. From a few microseconds on, the operator's cost is proportional to its rows.
_NARROW, _WIDE, _PROBE_ROWS, _MAX_ROWS = 64, 256, 1024, 1 << 14


Kinds = Sequence[tuple[str, float]]


@dataclass(frozen=True)
class CertifyOptions:
    """Options of a certification.

    Attributes:
        blocks: number of pairs to measure under every condition.
        slowdowns: slowdowns to inject, as fractions of the model's median latency.
        budget: relative budget of latency and memory that the reported rates are computed for.
        fresh: discard the pairs of earlier runs.
    """

    blocks: int = 30
    slowdowns: tuple[float, ...] = SLOWDOWNS
    budget: float = 0.02
    fresh: bool = False


def certify(
    model: AnyPath,
    *,
    data: AnyPath | None = None,
    options: CertifyOptions = CertifyOptions(),
    config: MeasureConfig = DEFAULT_CONFIG,
    progress: Progress = SILENT,
    workers: WorkerGroup = worker_group,
) -> Certificate:
    """Measure this host's error rates, and add the new pairs to the pairs of earlier runs.

    Args:
        model: an artifact folder or an .onnx file. The file itself stays unchanged; copies are modified.
        data: labelled samples in an `.npz`; by default the artifact's samples.
        options: number of pairs, and the slowdowns to inject.
        config: settings of the measurement.
        progress: receives progress reports; `SILENT` shows none.
        workers: starts the measured processes.

    Raises:
        UsageError: the model does not exist.
        DataError: the model has no numeric input for the extra operator to depend on.
        StorageError: the certificate cannot be written.
        Interrupted: Ctrl-C was pressed. The complete blocks are kept in the certificate.

    Examples:
        >>> import bench
        >>> options = bench.CertifyOptions(blocks=1, slowdowns=())
        >>> certificate = bench.certify("model.onnx", options=options)
        >>> [condition.kind for condition in certificate.conditions]
        ['same', 'rebuilt', 'larger']
    """
    chosen = subject(model, data)
    check_writable(certificate_path(fingerprint()))
    with tempfile.TemporaryDirectory(prefix="edgeproof-") as name:
        folder = Path(name)
        progress.say("choosing the size of the operator that slows the copies down")
        kinds, paths = _copies(chosen, options, config, folder, workers)
        with Measurement(paths, chosen.evaluation, config, progress, workers) as measurement:
            measurement.predict()
            try:
                measurement.add_blocks(options.blocks)
            except Interrupted as stop:
                if stop.result.models[0].runs:
                    _keep(chosen, options, kinds, stop.result, progress)
                raise
            result = measurement.result()
    return _keep(chosen, options, kinds, result, progress)


def conditions_of(kinds: Kinds, result: Result) -> tuple[Condition, ...]:
    """The scores of every condition.

    Args:
        kinds: kind and injected fraction of each candidate, in order.
        result: the baseline, followed by the candidates in the order of `kinds`.
    """
    baseline, *others = result.models
    return tuple(
        Condition.model_validate(
            {
                "kind": kind,
                "asked": asked,
                "latency_p50": tuple(pair_scores(baseline.runs, other.runs, 0.5)),
                "latency_p90": tuple(pair_scores(baseline.runs, other.runs, 0.9)),
                "peak_rss": tuple(
                    (one.peak_rss_bytes, two.peak_rss_bytes)
                    for one, two in zip(baseline.runs, other.runs, strict=True)
                    if one.peak_rss_bytes is not None and two.peak_rss_bytes is not None
                ),
            }
        )
        for (kind, asked), other in zip(kinds, others, strict=True)
    )


def flipped_labels(model: ModelResult, budget: float) -> tuple[FlippedLabels, ...]:
    """Repeatedly make a fraction of the correct predictions wrong, and count how often the budget FAILs.

    Returns:
        One entry for each fraction in `FLIP_SHARES`; none without predictions and labels.
    """
    right = model.correct()
    if right is None or model.predictions is None:
        return ()
    generator = np.random.default_rng(len(right))
    predictions = np.asarray(model.predictions)
    found = []
    for share in FLIP_SHARES:
        fails = 0
        for _ in range(FLIP_DRAWS):
            count = min(int(right.sum()), round(share * len(right)))
            chosen = generator.choice(np.flatnonzero(right), count, replace=False)
            changed = predictions.copy()
            changed[chosen] += 1
            candidate = model.model_copy(update={"predictions": tuple(changed.tolist())})
            metric = judge_accuracy(model, candidate, budget)
            fails += metric is not None and metric.verdict is Verdict.FAIL
        found.append(FlippedLabels(share=share, fail_share=fails / FLIP_DRAWS))
    return tuple(found)


def _copies(
    subject: Subject,
    options: CertifyOptions,
    config: MeasureConfig,
    folder: Path,
    workers: WorkerGroup,
) -> tuple[list[tuple[str, float]], list[Path]]:
    """Write the baseline and a copy for each condition.

    Returns:
        (kind, asked) of each copy, and the paths of the baseline and the copies.
    """
    content, name = subject.model.read_bytes(), _numeric_input(subject.model)

    def write(label: str, changed: bytes) -> Path:
        path = folder / f"{label}.onnx"
        path.write_bytes(changed)
        for file in external_data(subject.model):
            copy = folder / file.relative_to(subject.model.parent)
            if not copy.exists():
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, copy)
        return path

    width, rows_per_share, peak = _sizes(config, workers, write, content, name)
    plain = with_product(content, name, 1, width)
    kinds: list[tuple[str, float]] = [(SAME, 0.0), (REBUILT, 0.0)]
    paths = [write("baseline", plain), write("same", plain), write("rebuilt", rebuilt(plain))]
    for share in options.slowdowns:
        rows = 1 + round(rows_per_share * share)
        kinds.append((SLOWER, share))
        paths.append(write(f"slower-{share:g}", with_product(content, name, rows, width)))
    if peak is not None:
        kinds.append((LARGER, EXTRA_MEMORY))
        paths.append(write("larger", with_allocation(content, name, int(peak * EXTRA_MEMORY))))
    return kinds, paths


def _sizes(
    config: MeasureConfig,
    workers: WorkerGroup,
    write: Callable[[str, bytes], Path],
    content: bytes,
    name: str,
) -> tuple[int, float, int | None]:
    """Measure how large the operator has to be.

    The narrow operator is used unless it would need more than `_MAX_ROWS` rows, which would take too much
    memory.

    Returns:
        The operator's width, the number of rows that doubles the model's latency, and the model's peak
        memory in bytes.
    """
    probes = [(1, _NARROW), (_PROBE_ROWS, _NARROW), (_PROBE_ROWS, _WIDE)]
    paths = [
        write(f"probe-{rows}-{width}", with_product(content, name, rows, width)) for rows, width in probes
    ]
    with Measurement(paths, None, config, workers=workers) as measurement:
        measurement.add_blocks(SIZING_BLOCKS)
        plain, *others = measurement.result().models
    peak = plain.peak_rss_bytes()
    for (rows, width), other in zip(probes[1:], others, strict=True):
        slower = math.expm1(float(np.median(pair_scores(plain.runs, other.runs, 0.5))))
        # A slowdown too small to measure counts as 0.1 %, so the division stays finite. The real slowdown
        # of each copy is measured and reported later.
        doubling = (rows - 1) / max(slower, 1e-3)
        if doubling <= _MAX_ROWS or width == _WIDE:
            return width, doubling, peak
    raise AssertionError("a width is always chosen")


def _numeric_input(model: Path) -> str:
    for spec in signature_of(open_session(model)).inputs:
        if spec.dtype.startswith(("float", "int", "uint")):
            return spec.name
    raise DataError(model, "has no numeric input", "certify with another model")


def _join(old: Condition, new: Condition) -> Condition:
    return new.model_copy(
        update={
            "latency_p50": old.latency_p50 + new.latency_p50,
            "latency_p90": old.latency_p90 + new.latency_p90,
            "peak_rss": old.peak_rss + new.peak_rss,
        }
    )


def _alike(earlier: Certificate, options: CertifyOptions, sha256: str, kinds: Kinds, threads: int) -> bool:
    return (earlier.sha256, earlier.threads, earlier.budget) == (sha256, threads, options.budget) and [
        (c.kind, c.asked) for c in earlier.conditions
    ] == list(kinds)


def _keep(
    subject: Subject, options: CertifyOptions, kinds: Kinds, result: Result, progress: Progress
) -> Certificate:
    """Add the new pairs to the pairs of earlier runs, compute the error rates, store the certificate."""
    host = fingerprint()
    conditions = conditions_of(kinds, result)
    sha256, threads = model_sha256(subject.model), result.settings.threads
    earlier = None if options.fresh else read_certificate(host)
    if earlier is not None and _alike(earlier, options, sha256, kinds, threads):
        conditions = tuple(_join(old, new) for old, new in zip(earlier.conditions, conditions, strict=True))
    accuracy_budget = ReleaseBudgets().accuracy or 0.01
    unchanged = [score for c in conditions if c.kind in (SAME, REBUILT) for score in c.latency_p50]
    certificate = Certificate(
        updated_utc=datetime.now(UTC).isoformat(timespec="seconds"),
        host=host,
        model=subject.model.name,
        sha256=sha256,
        threads=threads,
        budget=options.budget,
        accuracy_budget=accuracy_budget,
        conditions=conditions,
        flipped=flipped_labels(result.models[0], accuracy_budget),
        samples=len(result.models[0].labels or ()),
        mde80=detectable(unchanged, options.budget),
    )
    try:
        write_certificate(certificate)
    except StorageError:
        progress.say(certificate.line())  # the result of hours is shown even if it cannot be stored
        raise
    return certificate
