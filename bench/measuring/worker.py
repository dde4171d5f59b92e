"""The measured process, `python -m bench.measuring.worker`, controlled by JSON lines on standard input.

Its peak memory is reported, so it imports no large library except numpy and ONNX Runtime. It sends one
reply per request (`bench.measuring.protocol`) to its original standard output. Everything that libraries
print is redirected to standard error.
"""

from __future__ import annotations

import gc
import math
import os
import resource
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bench.core.arrays import MAX_UNPACKED_BYTES, Array, read_npz, write_npz
from bench.core.errors import DataError, HostError, MeasurementError, ModelError
from bench.core.faults import cause_of, foreseen, place_of
from bench.inputs.evaluation import LABELS, EvaluationSet, are_classes, predictions, read_evaluation
from bench.inputs.runtime_words import plain_words
from bench.inputs.session import RuntimeOptions, Signature, check_feeds, open_session, signature_of
from bench.measuring.protocol import (
    AnyReply,
    AnyRequest,
    Batch,
    Burst,
    BurstTimes,
    Check,
    Fault,
    First,
    FirstRun,
    Golden,
    Memory,
    MemoryUse,
    Nearness,
    Open,
    Opened,
    PeakMemory,
    Predict,
    Predicted,
    Refusal,
    Streams,
    StreamTimes,
    Times,
    Warm,
    read_request,
    reply_line,
)
from bench.metrics.parity import EXACT_SQNR_DB, Parity, parity

if TYPE_CHECKING:
    import onnxruntime

WARM_WINDOW = 10
# The warmup ends when the last ten runs are faster than the ten before them by at most this fraction.
WARM_TOLERANCE = 0.03
PREDICT_BATCH = 32
OUTPUTS = "outputs"
# A model that returns classes: its timed outputs count as the same from this fraction of equal classes on.
CLASSES_AGREE = 0.75
SYNTHETIC_SEED = 20_240_229


class Worker:
    """The state of one measured process, with one method per kind of request."""

    def __init__(self) -> None:
        self._session: onnxruntime.InferenceSession = None
        self._feeds: EvaluationSet | None = None
        self._feeds_path = Path()
        self._samples: list[dict[str, Array]] = []
        self._signature = Signature((), ())
        self._model = Path()
        self._next = 0

    def open(self, request: Open) -> Opened:
        """Create the session; peak memory counts from just before."""
        self._model = Path(request.model)
        if request.cores is not None:
            os.sched_setaffinity(0, request.cores)
        if request.feeds is not None:
            self._feeds_path = Path(request.feeds)
            self._feeds = read_evaluation(self._feeds_path)
        import onnxruntime  # noqa: F401  (before peak memory is reset: the model does not cause this)

        gc.collect()
        clear_peak_memory()
        import_rss, imported = memory_bytes("VmRSS"), memory_use()
        # CPU time instead of wall-clock time: other workers may create sessions on this core meanwhile.
        start = time.process_time_ns()
        options = RuntimeOptions(
            threads=request.threads, arena=request.arena, exact_sums=request.exact_sums
        )
        self._session = open_session(self._model, options)
        session_ns = time.process_time_ns() - start
        self._signature = signature_of(self._session)
        return Opened(session_ns, import_rss, imported, memory_use())

    def first(self) -> FirstRun:
        """Run the first inference, on the first feeds."""
        self._samples = self._split()
        first_run_ns = self._timed_run()
        return FirstRun(first_run_ns, len(self._samples), memory_use())

    def warm(self, request: Warm) -> Times:
        """Run inferences until their times stop falling, or until the time limit."""
        times: list[int] = []
        start = time.perf_counter_ns()
        while True:
            times.append(self._timed_run())
            spent = time.perf_counter_ns() - start
            if spent > request.limit_ns:
                break
            if len(times) >= 2 * WARM_WINDOW:
                before = np.median(times[-2 * WARM_WINDOW : -WARM_WINDOW])
                now = np.median(times[-WARM_WINDOW:])
                if now >= before * (1 - WARM_TOLERANCE):
                    break
        return Times(times)

    def burst(self, request: Burst) -> BurstTimes:
        """Run `untimed` inferences to refill the caches, then time `count` inferences."""
        for _ in range(request.untimed):
            self._timed_run()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
        times = [self._timed_run() for _ in range(request.count)]
        return BurstTimes(times, resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw - before)

    def memory(self) -> PeakMemory:
        """Peak resident memory since just before the session was created, and the present memory use."""
        return PeakMemory(memory_bytes("VmHWM"), memory_use())

    def check(self, request: Check) -> Nearness:
        """SQNR of the outputs for the timed feeds, against the outputs that `predict` wrote.

        The SQNR is -`EXACT_SQNR_DB` if shapes differ or an output is not finite. If the model returns class
        indices, their differences have no meaning. The SQNR is then `EXACT_SQNR_DB` if almost all classes
        are equal, otherwise -`EXACT_SQNR_DB`.
        """
        (expected,) = read_npz(Path(request.outputs)).values()
        found = np.concatenate([np.asarray(self._run(feeds)[0]) for feeds in self._samples])
        expected = expected[: len(found)]
        if found.shape != expected.shape or not np.isfinite(found).all():
            return Nearness(-EXACT_SQNR_DB)
        near = parity(expected, found)
        if are_classes(found):  # rounding may decide ties differently, so a few classes may differ
            return Nearness(EXACT_SQNR_DB if near.agreement >= CLASSES_AGREE else -EXACT_SQNR_DB)
        return Nearness(near.sqnr_db)

    def streams(self, request: Streams) -> StreamTimes:
        """Run inferences from `count` threads at the same time for `duration_ns`; time each inference."""
        times: list[list[int]] = [[] for _ in range(request.count)]
        failures: list[Exception] = []
        barrier = threading.Barrier(request.count)

        def stream(index: int) -> None:
            try:
                barrier.wait()
                turn, end = index, time.perf_counter_ns() + request.duration_ns
                while not times[index] or time.perf_counter_ns() < end:
                    start = time.perf_counter_ns()
                    self._run(self._samples[turn % len(self._samples)])
                    times[index].append(time.perf_counter_ns() - start)
                    turn += 1
            except Exception as error:  # noqa: BLE001 (an exception in a thread would be lost)
                failures.append(error)

        threads = [threading.Thread(target=stream, args=(k,)) for k in range(request.count)]
        start = time.perf_counter_ns()
        _start(threads, barrier)
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]
        return StreamTimes(times, time.perf_counter_ns() - start)

    def batch(self, request: Batch) -> Times:
        """Run batches of `size` samples for `duration_ns`.

        Raises:
            DataError: the model has a fixed batch of another size.
        """
        size = request.size
        fixed = fixed_batch(self._signature)
        if fixed is not None and fixed != size:
            raise DataError(
                self._model, f"has a fixed batch of {fixed}, not {size}", "export it with a dynamic batch"
            )
        each = len(next(iter(self._samples[0].values())))
        parts = [self._samples[k % len(self._samples)] for k in range(max(size // each, 1))]
        feeds = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        self._run(feeds)
        times: list[int] = []
        begin = time.perf_counter_ns()
        while not times or time.perf_counter_ns() - begin < request.duration_ns:
            start = time.perf_counter_ns()
            self._run(feeds)
            times.append(time.perf_counter_ns() - start)
        return Times(times)

    def predict(self, request: Predict) -> Predicted:
        """Classify a whole evaluation set by the first output: scores [N, classes], or integer classes.

        The outputs of the first samples are written to a file, for comparison with the timed outputs.
        """
        path = Path(request.evaluation)
        evaluation = read_evaluation(path)
        check_feeds(path, self._signature, dict(evaluation.feeds))
        found: list[int] = []
        classes: int | None = None
        for feeds in batches(self._signature, evaluation):
            output = self._numbers(self._run(feeds)[0])
            chosen = are_classes(output)
            if output.ndim != 2 and not (chosen and output.ndim == 1):
                raise DataError(
                    self._model,
                    f"its first output has shape {list(output.shape)}, but accuracy needs class scores of "
                    "shape [N, classes]",
                    "export it with class scores as its first output",
                )
            if not np.isfinite(output).all():
                raise ModelError(
                    self._model, "its first output holds NaN or infinity", "look for overflow in the model"
                )
            if not found:
                write_npz(Path(request.outputs), {OUTPUTS: output})
            classes = None if chosen else output.shape[1]
            found.extend(int(index) for index in predictions(output))
        labels = evaluation.labels
        if labels is not None and classes is not None and int(labels.max()) >= classes:
            raise DataError(
                path,
                f"{LABELS!r} contains class {int(labels.max())}, but the model has only {classes} classes",
                "check that the data are made for this model",
            )
        return Predicted(
            predictions=found,
            labels=None if labels is None else [int(label) for label in labels],
            ids=None if evaluation.ids is None else [str(name) for name in evaluation.ids],
        )

    def golden(self, request: Golden) -> Parity:
        """Run an artifact's golden feeds and compare the outputs with the expected ones."""
        from bench.measuring.golden import compare_golden, read_golden

        path = Path(request.golden)
        feeds, _ = read_golden(path)
        check_feeds(path, self._signature, feeds)
        names = [spec.name for spec in self._signature.outputs]
        outputs = [
            [self._numbers(output) for output in self._run(part)]
            for part in batches(self._signature, EvaluationSet(feeds, None, None))
        ]
        joined = {
            name: np.concatenate([part[index] for part in outputs]) for index, name in enumerate(names)
        }
        return compare_golden(path, joined)

    def _split(self) -> list[dict[str, Array]]:
        if self._feeds is None:
            return [synthetic_feeds(self._model, self._signature)]
        feeds = dict(self._feeds.feeds)
        check_feeds(self._feeds_path, self._signature, feeds)
        size = fixed_batch(self._signature) or 1
        if self._feeds.count < size:
            raise DataError(
                self._feeds_path,
                f"{self._feeds.count} samples do not fill one batch of {size}",
                "export the model with a dynamic batch",
            )
        return [
            {name: np.ascontiguousarray(a[i : i + size]) for name, a in feeds.items()}
            for i in range(0, self._feeds.count - size + 1, size)
        ]

    def _numbers(self, output: object) -> Array:
        """Check that an output is an array of numbers, and return it.

        Raises:
            ModelError: the output is a sequence or a map, or contains text.
        """
        if isinstance(output, np.ndarray) and output.dtype.kind in "biuf":
            return output
        raise ModelError(
            self._model,
            "one of its outputs is a sequence, a map or text",
            "export it with tensors of numbers as outputs",
        )

    def _timed_run(self) -> int:
        feeds = self._samples[self._next % len(self._samples)]
        self._next += 1
        start = time.perf_counter_ns()
        self._run(feeds)
        return time.perf_counter_ns() - start

    def _run(self, feeds: dict[str, Array]) -> list[object]:
        try:
            outputs: list[object] = self._session.run(None, feeds)
        except Exception as error:  # ONNX Runtime's exceptions have no common base class but this
            raise ModelError(
                self._model,
                f"fails when it runs ({plain_words(str(error))})",
                "check that the feeds fit the model",
            ) from error
        return outputs


def _start(threads: list[threading.Thread], barrier: threading.Barrier) -> None:
    """Start all threads.

    Raises:
        HostError: the system cannot start all of them. The threads that already wait at the barrier then
        end.
    """
    for index, thread in enumerate(threads):
        try:
            thread.start()
        except RuntimeError as error:
            barrier.abort()
            raise HostError(
                "--streams",
                f"the system can start only {index} of {len(threads)} threads",
                "use fewer streams",
            ) from error


def fixed_batch(signature: Signature) -> int | None:
    """The fixed batch size of a model, or None if axis 0 of its inputs is dynamic."""
    sizes = {spec.shape[0] for spec in signature.inputs if spec.shape}
    fixed = sizes - {None}
    return fixed.pop() if len(fixed) == 1 else None


def batches(signature: Signature, evaluation: EvaluationSet) -> list[dict[str, Array]]:
    """Split an evaluation set into batches of the model's fixed size, or of `PREDICT_BATCH` samples.

    Raises:
        DataError: the number of samples is not a multiple of the fixed batch size.
    """
    size = fixed_batch(signature)
    if size is not None and evaluation.count % size:
        raise DataError(
            "evaluation set",
            f"{evaluation.count} samples do not fill batches of {size}",
            "export the model with a dynamic batch",
        )
    each = size or PREDICT_BATCH
    return [
        {name: array[i : i + each] for name, array in evaluation.feeds.items()}
        for i in range(0, evaluation.count, each)
    ]


def synthetic_feeds(model: Path, signature: Signature) -> dict[str, Array]:
    """Random feeds that fit the input signature, for measuring time and memory but not accuracy.

    Raises:
        DataError: an input has a dynamic axis other than the batch, or is larger than an `.npz` may be.
        ModelError: an input is not a tensor of numbers.
    """
    generator = np.random.default_rng(SYNTHETIC_SEED)
    feeds: dict[str, Array] = {}
    for spec in signature.inputs:
        open_axes = [axis for axis, size in enumerate(spec.shape) if size is None and axis > 0]
        if open_axes:
            raise DataError(
                model,
                f"axis {open_axes[0]} of input {spec.name!r} has no fixed size",
                "provide feeds with --data",
            )
        shape = tuple(size or 1 for size in spec.shape)
        if not spec.is_numeric:
            raise ModelError(
                model,
                f"its input {spec.name!r} has type {spec.dtype}, but only tensors of numbers are supported",
                "export it with tensors of numbers as inputs",
            )
        size = math.prod(shape) * np.dtype(spec.dtype).itemsize
        if size > MAX_UNPACKED_BYTES:
            raise DataError(
                model,
                f"input {spec.name!r} of shape {list(shape)} takes {size / 1e9:.3g} GB",
                "export the model with a smaller or a dynamic batch",
            )
        kind = np.dtype(spec.dtype).kind
        if kind == "f":
            feeds[spec.name] = generator.standard_normal(shape).astype(spec.dtype)
        else:
            feeds[spec.name] = generator.integers(0, 2, shape).astype(spec.dtype)
    return feeds


def failure(error: Exception) -> Refusal | Fault:
    """Convert an exception to a reply: `Refusal` for an expected error, `Fault` for any other exception."""
    if isinstance(error, MemoryError):
        cause = f"there is too little memory ({error})" if str(error) else "there is too little memory"
        error = MeasurementError("worker", cause, "free some memory, or measure a smaller model")
    known = foreseen(error)
    if known is not None:
        return Refusal(type(known).__name__, known.place, known.cause, known.fix)
    trace = "".join(traceback.format_exception(error))
    return Fault(place_of(error), cause_of(error), trace)


def clear_peak_memory() -> None:
    """Reset the kernel's high-water mark of resident memory (Linux: proc(5), clear_refs)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return  # the mark then includes the imports, whose peak is below that of any session


def memory_bytes(field: str) -> int | None:
    """A memory field of /proc/self/status in bytes, or None if the system does not have it."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return None


def memory_use() -> MemoryUse:
    """The present memory use of this process; fields that the system does not report are None."""
    try:
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    except OSError:
        lines = []
    fields = dict(line.split(":", 1) for line in lines[1:])
    kib = {name: int(value.split()[0]) for name, value in fields.items()}
    private = [kib[name] for name in ("Private_Clean", "Private_Dirty") if name in kib]
    return MemoryUse(
        rss_bytes=memory_bytes("VmRSS"),
        pss_bytes=kib["Pss"] * 1024 if "Pss" in kib else None,
        private_bytes=sum(private) * 1024 if private else None,
    )


def handle(worker: Worker, request: AnyRequest) -> AnyReply:  # noqa: PLR0911 (one line per request)
    """Call the method of the worker that handles a request."""
    match request:
        case Open():
            return worker.open(request)
        case First():
            return worker.first()
        case Warm():
            return worker.warm(request)
        case Burst():
            return worker.burst(request)
        case Memory():
            return worker.memory()
        case Predict():
            return worker.predict(request)
        case Check():
            return worker.check(request)
        case Streams():
            return worker.streams(request)
        case Batch():
            return worker.batch(request)
        case Golden():
            return worker.golden(request)


def main() -> None:
    """Reply to requests until standard input closes."""
    # Ctrl-C reaches the whole process group. This process ignores it; its parent ends it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    replies = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)
    worker = Worker()
    for line in sys.stdin.buffer:
        request = read_request(line)
        reply: AnyReply
        try:
            reply = handle(worker, request)
        except Exception as error:  # noqa: BLE001 (every exception has to reach the parent process)
            reply = failure(error)
        replies.write(reply_line(reply))


if __name__ == "__main__":
    main()
