"""The worker of a measured process, called inside the test process."""

from __future__ import annotations

import os
import re
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from bench.core.arrays import read_npz, write_npz
from bench.core.errors import ArtifactError, DataError, HostError, ModelError
from bench.inputs.session import Signature, TensorSpec, open_session
from bench.measuring import worker as worker_module
from bench.measuring.protocol import Burst, Fault, Golden, Open, Predict, Refusal, Streams, Warm
from bench.measuring.worker import (
    PREDICT_BATCH,
    WARM_WINDOW,
    Worker,
    batches,
    clear_peak_memory,
    failure,
    fixed_batch,
    memory_bytes,
    synthetic_feeds,
)
from tests.bench import onnx_bytes
from tests.bench.onnx_bytes import node, value

WEIGHT = np.random.default_rng(7).standard_normal((4, 3)).astype(np.float32)


def opened(model, feeds=None, **changes):
    worker = Worker()
    request = Open(
        str(model), feeds=None if feeds is None else str(feeds), threads=1, arena=True, cores=None
    )
    assert worker.open(replace(request, **changes)).session_ns > 0
    return worker


@pytest.fixture
def feeds_file(tmp_path):
    """Write feeds to a file."""

    def write(**arrays):
        path = tmp_path / "feeds.npz"
        write_npz(path, arrays)
        return path

    return write


@pytest.fixture
def watched(monkeypatch):
    """Make workers call `act(feeds)` before each run of their session."""

    def watch(act):
        def open_watched(*arguments):
            session = open_session(*arguments)

            def run(names, feeds):
                act(feeds)
                return session.run(names, feeds)

            parts = {"get_inputs": session.get_inputs, "get_outputs": session.get_outputs, "run": run}
            return SimpleNamespace(**parts)

        monkeypatch.setattr(worker_module, "open_session", open_watched)

    return watch


def test_feeds_take_turns_one_by_one(models, feeds_file, samples, watched):
    fed = []
    watched(lambda feeds: fed.append(feeds["x"]))
    worker = opened(models.dynamic, feeds_file(x=samples.x[:3]))
    assert worker.first().samples == 3
    assert len(worker.burst(Burst(count=3, untimed=1)).ns) == 3
    np.testing.assert_array_equal(np.concatenate(fed), samples.x[[0, 1, 2, 0, 1]])


def test_a_fixed_batch_is_filled(models, feeds_file, samples):
    worker = opened(models.fixed, feeds_file(x=samples.x[:5]))
    assert worker.first().samples == 2
    with pytest.raises(DataError, match="1 samples do not fill one batch of 2"):
        opened(models.fixed, feeds_file(x=samples.x[:1])).first()


@pytest.mark.parametrize("name", ["dynamic", "fixed", "integers"])
def test_synthetic_feeds_run(models, name):
    worker = opened(getattr(models, name))
    reply = worker.first()
    assert reply.samples == 1
    assert reply.first_run_ns > 0


def test_synthetic_feeds_are_the_same_every_time():
    signature = Signature((TensorSpec("a", "float32", (None, 4)), TensorSpec("b", "bool", (2, 3))), ())
    first, second = (synthetic_feeds(Path("m"), signature) for _ in range(2))
    assert {name: (array.dtype.name, array.shape) for name, array in first.items()} == {
        "a": ("float32", (1, 4)),
        "b": ("bool", (2, 3)),
    }
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])


def test_a_dynamic_axis_needs_real_feeds(models):
    with pytest.raises(DataError, match="axis 1 of input 'x' has no fixed size; provide feeds"):
        opened(models.open_axis).first()


def test_pinning_reaches_the_system(models, monkeypatch):
    pinned = []
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cores: pinned.append((pid, cores)))
    opened(models.dynamic, cores=[1, 2])
    assert pinned == [(0, [1, 2])]


class FakeClock:
    """Replacement for the module `time`, in which runs take the given durations."""

    def __init__(self, durations):
        self.readings = [0]
        for duration in durations:
            self.readings += [self.readings[-1], self.readings[-1] + duration, self.readings[-1] + duration]
        self.readings.reverse()

    def perf_counter_ns(self):
        return self.readings.pop()


@pytest.mark.parametrize(
    ("durations", "limit_ns", "runs"),
    [
        ([100] * 50, 10**9, 2 * WARM_WINDOW),
        ([1000 - k for k in range(50)], 10**9, 2 * WARM_WINDOW),  # times fall, but too slowly to matter
        ([100 - k for k in range(30)] + [50] * 40, 10**9, 46),  # warm after the times stop falling
        ([1000 - 9 * k for k in range(100)], 5000, 6),  # the time limit ends the warmup
    ],
)
def test_warming_ends_when_times_stop_falling(models, monkeypatch, durations, limit_ns, runs):
    worker = opened(models.dynamic)
    worker.first()
    monkeypatch.setattr(worker_module, "time", FakeClock(durations))
    times = worker.warm(Warm(limit_ns)).ns
    assert times == durations[: len(times)]
    if limit_ns < 10**9:
        assert sum(times[:-1]) <= limit_ns < sum(times)
    assert len(times) == runs


def test_predictions_are_the_largest_outputs(models, evaluation, samples):
    outputs = evaluation.parent / "outputs.npz"
    reply = opened(models.dynamic).predict(Predict(str(evaluation), str(outputs)))
    assert reply.labels == samples.labels.tolist()
    assert reply.ids is None
    np.testing.assert_allclose(read_npz(outputs)["outputs"], samples.x[:PREDICT_BATCH] @ WEIGHT, rtol=1e-5)
    hits = np.equal(reply.predictions, reply.labels)
    assert hits.mean() == pytest.approx(samples.accuracy)


@pytest.mark.parametrize("classes", ["argmax", "topk"])
def test_outputs_that_are_classes_are_the_predictions(models, tmp_path, evaluation, classes):
    request = Predict(str(evaluation), str(tmp_path / "outputs.npz"))
    reply = opened(getattr(models, classes)).predict(request)
    assert reply == opened(models.dynamic).predict(request)


def test_predictions_without_labels(models, feeds_file, samples):
    path = feeds_file(x=samples.x, ids=np.array([f"s{k}" for k in range(len(samples.x))]))
    reply = opened(models.fixed).predict(Predict(str(path), str(path.with_name("outputs.npz"))))
    assert reply.labels is None
    assert reply.ids[:2] == ["s0", "s1"]
    assert len(reply.predictions) == len(samples.x)


@pytest.mark.parametrize(
    ("model", "arrays", "error", "words"),
    [
        ("nan", {"x": np.full((2, 4), -1e3, np.float32)}, ModelError, "holds NaN or infinity"),
        ("three_axes", {"x": np.zeros((2, 4), np.float32)}, DataError, r"has shape \[2, 1, 3\]"),
        (
            "dynamic",
            {"x": np.zeros((2, 4), np.float32), "labels": np.array([0, 3])},
            DataError,
            "'labels' contains class 3, but the model has only 3 classes",
        ),
        ("dynamic", {"y": np.zeros((2, 4), np.float32)}, DataError, "lacks the model's input 'x'"),
        ("fails", {"x": np.zeros((1, 4), np.float32)}, ModelError, "fails when it runs"),
        ("fixed", {"x": np.zeros((3, 4), np.float32)}, DataError, "3 samples do not fill batches of 2"),
    ],
)
def test_errors_of_predict(models, feeds_file, *, model, arrays, error, words):
    worker, path = opened(getattr(models, model)), feeds_file(**arrays)
    with pytest.raises(error, match=words):
        worker.predict(Predict(str(path), str(path.with_name("outputs.npz"))))


@pytest.mark.parametrize(
    ("shapes", "size"),
    [([(2, 4)], 2), ([(None, 4)], None), ([(2, 4), (3,)], None), ([()], None), ([(None, 4), (5,)], 5)],
)
def test_the_fixed_batch_of_a_model(shapes, size):
    inputs = tuple(TensorSpec(f"x{k}", "float32", shape) for k, shape in enumerate(shapes))
    assert fixed_batch(Signature(inputs, ())) == size


def test_batches_cover_every_sample_once(models, evaluation):
    signature = Signature((TensorSpec("x", "float32", (None, 4)),), ())
    parts = batches(signature, worker_module.read_evaluation(evaluation))
    sizes = [len(part["x"]) for part in parts]
    assert sizes == [PREDICT_BATCH, 40 - PREDICT_BATCH]


def test_golden_outputs_are_compared(models, tmp_path, samples):
    path = tmp_path / "golden.npz"
    (expected,) = open_session(models.dynamic).run(None, {"x": samples.x})
    write_npz(path, {"x": samples.x, "expected.y": expected})
    found = opened(models.dynamic).golden(Golden(str(path)))
    assert (found.agreement, found.samples) == (1.0, len(samples.x))
    assert opened(models.rounded).golden(Golden(str(path))).sqnr_db < found.sqnr_db


def test_golden_outputs_must_be_numbers(models, tmp_path):
    path = tmp_path / "golden.npz"
    hot = np.full((2, 4), -1e3, np.float32)
    write_npz(path, {"x": hot, "expected.y": np.zeros((2, 3), np.float32)})
    with pytest.raises(ArtifactError, match="output 'y' holds NaN"):
        opened(models.nan).golden(Golden(str(path)))


def test_memory_is_read_from_the_kernel(tmp_path, models):
    worker = opened(models.dynamic)
    worker.first()
    peak = worker.memory().peak_rss_bytes
    now = memory_bytes("VmRSS")
    if now is not None:
        assert peak >= now > 1 << 20
    assert memory_bytes("NoSuchField") is None


def test_memory_is_unknown_on_a_host_without_proc(monkeypatch):
    def refuse(*_arguments, **_options):
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", refuse)
    monkeypatch.setattr(Path, "write_text", refuse)
    clear_peak_memory()
    assert memory_bytes("VmHWM") is None


ROW = onnx_bytes.tensor(shape=(1, 2))


def tensor(name, kind=onnx_bytes.FLOAT, shape=(1, 2)):
    return value(name, onnx_bytes.tensor(kind, shape))


def save_model(path, node, given, taken):
    path.write_bytes(onnx_bytes.model([node], [given], [taken]))
    return path


ODD_INPUTS = {
    "tensor(string)": (
        node("Identity", ["x"], ["y"]),
        tensor("x", onnx_bytes.STRING),
        tensor("y", onnx_bytes.STRING),
    ),
    "tensor(bfloat16)": (
        node("Cast", ["x"], ["y"], to=onnx_bytes.FLOAT),
        tensor("x", onnx_bytes.BFLOAT16),
        tensor("y"),
    ),
    "seq(tensor(float))": (
        node("SequenceLength", ["x"], ["y"]),
        value("x", onnx_bytes.sequence(ROW)),
        tensor("y", onnx_bytes.INT64, ()),
    ),
    "optional(tensor(float))": (
        node("OptionalHasElement", ["x"], ["y"]),
        value("x", onnx_bytes.optional(ROW)),
        tensor("y", onnx_bytes.BOOL, ()),
    ),
    "map(int64,tensor(float))": (
        node("CastMap", ["x"], ["y"], domain="ai.onnx.ml", cast_to="TO_FLOAT", map_form="DENSE"),
        value("x", onnx_bytes.mapping(onnx_bytes.INT64, onnx_bytes.tensor(shape=()))),
        tensor("y", shape=(1, None)),
    ),
}


@pytest.mark.parametrize("kind", ODD_INPUTS)
def test_inputs_must_be_tensors_of_numbers(tmp_path, kind):
    model = save_model(tmp_path / "odd.onnx", *ODD_INPUTS[kind])
    with pytest.raises(ModelError) as caught:
        opened(model).first()
    assert caught.value.cause.startswith(f"its input 'x' has type {kind}, but only")


def test_outputs_must_be_tensors_of_numbers(tmp_path, feeds_file):
    construct = node("SequenceConstruct", ["x"], ["y"])
    taken = value("y", onnx_bytes.sequence(ROW))
    model = save_model(tmp_path / "odd.onnx", construct, tensor("x"), taken)
    path = feeds_file(x=np.zeros((1, 2), np.float32))
    with pytest.raises(ModelError, match="is a sequence, a map or text; export it with tensors"):
        opened(model, path).predict(Predict(str(path), str(tmp_path / "o.npz")))


@pytest.mark.parametrize(
    ("shape", "size"), [((200_000, 200_000), "160 GB"), ((None, 2**62), "1.84e+10 GB")]
)
def test_feeds_that_exceed_the_limit_of_memory_are_refused(shape, size):
    signature = Signature((TensorSpec("x", "float32", shape),), ())
    with pytest.raises(DataError, match=f"m.onnx: input 'x' of shape .* takes {re.escape(size)}; export"):
        synthetic_feeds(Path("m.onnx"), signature)


def test_started_threads_end_if_the_system_refuses_another(models, monkeypatch):
    worker = opened(models.dynamic)
    worker.first()
    start, started = threading.Thread.start, []

    def refuse_the_third(thread):
        if len(started) == 2:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse_the_third)
    with pytest.raises(HostError, match="--streams: the system can start only 2 of 4 threads; use"):
        worker.streams(Streams(count=4, duration_ns=1))
    for thread in started:
        thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in started)


@pytest.mark.parametrize("error", [MemoryError("9 GiB"), ZeroDivisionError()])
def test_an_exception_in_a_stream_is_raised(models, watched, error):
    failing = threading.Event()

    def fail(_feeds):
        if failing.is_set():
            raise error

    watched(fail)
    worker = opened(models.dynamic)
    worker.first()
    failing.set()
    with pytest.raises(ModelError, match="fails when it runs") as caught:
        worker.streams(Streams(count=2, duration_ns=1))
    assert caught.value.__cause__ is error


@pytest.mark.parametrize(
    ("error", "reply"),
    [
        (DataError("d.npz", "is bad", "fix it"), ["DataError", "d.npz", "is bad", "fix it"]),
        (
            MemoryError("9 GiB"),
            [
                "MeasurementError",
                "worker",
                "there is too little memory (9 GiB)",
                "free some memory, or measure a smaller model",
            ],
        ),
        (
            MemoryError(),
            [
                "MeasurementError",
                "worker",
                "there is too little memory",
                "free some memory, or measure a smaller model",
            ],
        ),
        (
            ImportError("no libx.so", name="onnxruntime"),
            [
                "HostError",
                "onnxruntime",
                "cannot be imported (no libx.so)",
                "install the version that constraints.txt names",
            ],
        ),
    ],
)
def test_an_expected_error_becomes_a_refusal(error, reply):
    assert failure(error) == Refusal(*reply)


def test_an_unexpected_exception_becomes_a_fault():
    assert failure(KeyError("x")) == Fault("edgeproof", "raised KeyError ('x')", "KeyError: 'x'\n")
